-- From capture to arrival, per device, for what arrived in the last day: how long events waited on the device.
-- `ahead`: events from the future, so the clock of the device is wrong. Events of a clock that was not known to be set
-- are left out.
SELECT
  device_id,
  COUNT(DISTINCT event_id) AS events,
  APPROX_QUANTILES(TIMESTAMP_DIFF(publish_time, TIMESTAMP_MILLIS(timestamp), MILLISECOND), 100)[OFFSET(50)] / 1000 AS p50_s,
  APPROX_QUANTILES(TIMESTAMP_DIFF(publish_time, TIMESTAMP_MILLIS(timestamp), MILLISECOND), 100)[OFFSET(95)] / 1000 AS p95_s,
  MAX(TIMESTAMP_DIFF(publish_time, TIMESTAMP_MILLIS(timestamp), MILLISECOND)) / 1000 AS max_s,
  COUNTIF(TIMESTAMP_DIFF(publish_time, TIMESTAMP_MILLIS(timestamp), MILLISECOND) < -1000) AS ahead
FROM edge_agent.events
WHERE publish_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 1 DAY) AND time_source != 'unverified'
GROUP BY device_id
ORDER BY p95_s DESC, device_id
