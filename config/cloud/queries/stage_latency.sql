-- How long each stage takes per device, over all samples of the last day, from the regular health events: how long a
-- sample waits (capture), is made to fit (preprocess), runs (invoke), is read (decode), and until a rule acts (action).
WITH health AS (
  SELECT device_id, latencies
  FROM edge_agent.events
  WHERE publish_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 1 DAY) AND kind = 'health'
  QUALIFY ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY publish_time) = 1
)
SELECT
  health.device_id,
  latency.stage,
  SUM(latency.count) AS samples,
  ROUND(SUM(latency.p50_ms * latency.count) / SUM(latency.count), 3) AS typical_ms, -- mean of the medians
  MAX(latency.p99_ms) AS worst_p99_ms,
  MAX(latency.max_ms) AS max_ms
FROM health, UNNEST(health.latencies) AS latency
WHERE latency.count > 0
GROUP BY health.device_id, latency.stage
ORDER BY health.device_id, typical_ms DESC
