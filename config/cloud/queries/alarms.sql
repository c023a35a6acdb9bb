-- Alarms of the last 7 days, the newest first. `detail` is there when a device needs a hand, and says what to do.
SELECT
  TIMESTAMP_MILLIS(timestamp) AS captured,
  device_id,
  action,
  prediction,
  confidence,
  value,
  detail,
  model_version,
  event_id
FROM edge_agent.events
WHERE publish_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 7 DAY) AND kind = 'alarm'
QUALIFY ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY publish_time) = 1
ORDER BY captured DESC, device_id
