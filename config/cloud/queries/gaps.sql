-- Holes in the numbers of each device, among the events that arrived in the last 31 days.
-- `settled`: a result that was made after the hole has arrived. Results are what a device sends last, so nothing out of
-- the hole is waiting on it any more. Otherwise the missing events may still be in its queue.
WITH numbered AS (
  SELECT
    device_id,
    CAST(SPLIT(event_id, '/')[OFFSET(1)] AS INT64) AS epoch,
    CAST(SPLIT(event_id, '/')[OFFSET(2)] AS INT64) AS number,
    MIN(timestamp) AS timestamp,
    MIN(kind) AS kind
  FROM edge_agent.events
  WHERE publish_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 31 DAY)
  GROUP BY device_id, epoch, number
),
neighbours AS (
  SELECT
    device_id,
    epoch,
    number,
    timestamp,
    LAG(number) OVER (PARTITION BY device_id, epoch ORDER BY number) AS previous_number,
    LAG(timestamp) OVER (PARTITION BY device_id, epoch ORDER BY number) AS previous_timestamp,
    MAX(IF(kind IN ('result', 'summary'), number, NULL)) OVER (PARTITION BY device_id, epoch) AS last_result
  FROM numbered
)
SELECT
  device_id,
  epoch,
  previous_number + 1 AS first_missing,
  number - 1 AS last_missing,
  number - previous_number - 1 AS missing,
  TIMESTAMP_MILLIS(previous_timestamp) AS since,
  TIMESTAMP_MILLIS(timestamp) AS until,
  IFNULL(last_result >= number, FALSE) AS settled
FROM neighbours
WHERE number - previous_number > 1
ORDER BY missing DESC, device_id, epoch, first_missing
