-- What devices have given up, by cause, as reported in the last 31 days; docs/events.md explains the causes.
WITH losses AS (
  SELECT device_id, cause, count, first_timestamp, last_timestamp
  FROM edge_agent.events
  WHERE publish_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 31 DAY) AND kind = 'loss'
  QUALIFY ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY publish_time) = 1
)
SELECT
  device_id,
  cause,
  SUM(count) AS lost,
  COUNT(*) AS reports,
  TIMESTAMP_MILLIS(MIN(first_timestamp)) AS oldest,
  TIMESTAMP_MILLIS(MAX(last_timestamp)) AS newest
FROM losses
GROUP BY device_id, cause
ORDER BY lost DESC, device_id, cause
