-- Devices that were heard of in the last 31 days, but not in the last 15 minutes: three times [telemetry].health_interval
-- as it comes. `site` is the label of that name, if [device].labels has one.
SELECT
  device_id,
  MAX_BY(JSON_VALUE(attributes, '$.label_site'), publish_time) AS site,
  MAX(publish_time) AS last_arrival,
  TIMESTAMP_DIFF(CURRENT_TIMESTAMP(), MAX(publish_time), MINUTE) AS silent_minutes,
  TIMESTAMP_MILLIS(MAX(timestamp)) AS newest_event
FROM edge_agent.events
WHERE publish_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 31 DAY)
GROUP BY device_id
HAVING MAX(publish_time) < TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 15 MINUTE)
ORDER BY last_arrival, device_id
