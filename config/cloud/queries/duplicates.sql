-- Events that are in the table more than once, in the last 7 days. Delivery is at least once: see docs/cloud.md.
SELECT
  device_id,
  event_id,
  COUNT(*) AS copies,
  COUNT(DISTINCT message_id) - 1 AS sent_again, -- by the device, which had got no answer
  COUNT(*) - COUNT(DISTINCT message_id) AS written_again, -- by Pub/Sub
  MIN(publish_time) AS first_arrival,
  MAX(publish_time) AS last_arrival
FROM edge_agent.events
WHERE publish_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 7 DAY)
GROUP BY device_id, event_id
HAVING COUNT(*) > 1
ORDER BY last_arrival DESC, event_id
