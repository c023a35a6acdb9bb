-- Time of one inference, per device and model version, over the results of the last day.
-- Where not every result is published, stage_latency.sql knows more: it is about all samples.
SELECT
  device_id,
  model_name,
  model_version,
  accelerator,
  COUNT(DISTINCT event_id) AS results,
  APPROX_QUANTILES(inference_time_ms, 100)[OFFSET(50)] AS p50_ms,
  APPROX_QUANTILES(inference_time_ms, 100)[OFFSET(95)] AS p95_ms,
  APPROX_QUANTILES(inference_time_ms, 100)[OFFSET(99)] AS p99_ms,
  MAX(inference_time_ms) AS max_ms
FROM edge_agent.events
WHERE publish_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 1 DAY) AND kind = 'result'
GROUP BY device_id, model_name, model_version, accelerator
ORDER BY p95_ms DESC, device_id
