-- Time of one inference, per device and model version, over the last day: of the results that came one by one, and of
-- the windows that came as a summary, whose median is the mean of the medians and whose p95 and p99 are the worst.
-- Where only some results are published, stage_latency.sql knows more: it is about all samples.
WITH timed AS (
  SELECT kind, device_id, model_name, model_version, accelerator, inference_time_ms, inference_time, `count`
  FROM edge_agent.events
  WHERE publish_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 1 DAY) AND kind IN ('result', 'summary')
  QUALIFY ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY publish_time) = 1
)
SELECT
  device_id,
  model_name,
  model_version,
  accelerator,
  kind,
  COUNT(*) AS results,
  APPROX_QUANTILES(inference_time_ms, 100)[OFFSET(50)] AS p50_ms,
  APPROX_QUANTILES(inference_time_ms, 100)[OFFSET(95)] AS p95_ms,
  APPROX_QUANTILES(inference_time_ms, 100)[OFFSET(99)] AS p99_ms,
  MAX(inference_time_ms) AS max_ms
FROM timed
WHERE kind = 'result'
GROUP BY device_id, model_name, model_version, accelerator, kind
UNION ALL
SELECT
  device_id,
  model_name,
  model_version,
  accelerator,
  kind,
  SUM(`count`) AS results,
  ROUND(SUM(inference_time.p50_ms * `count`) / SUM(`count`), 3) AS p50_ms,
  MAX(inference_time.p95_ms) AS p95_ms,
  MAX(inference_time.p99_ms) AS p99_ms,
  MAX(inference_time.max_ms) AS max_ms
FROM timed
WHERE kind = 'summary'
GROUP BY device_id, model_name, model_version, accelerator, kind
ORDER BY p95_ms DESC, device_id
