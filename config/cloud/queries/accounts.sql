-- Every event of every device, among those that arrived in the last 31 days: received, missing, and how many of the
-- missing ones the device has reported as lost. `unexplained` > 0: some still wait on the device, or are in the
-- dead-letter topic. `unexplained` < 0: some of the losses lie before the 31 days.
-- More than one epoch: as often, less one, the power failed. Events of one commit interval may be lost with each.
WITH numbered AS (
  SELECT
    device_id,
    CAST(SPLIT(event_id, '/')[OFFSET(1)] AS INT64) AS epoch,
    CAST(SPLIT(event_id, '/')[OFFSET(2)] AS INT64) AS number,
    -- Other causes are about samples and pictures, which never had a number.
    MAX(IF(cause IN ('queue_full', 'rejected', 'damaged', 'expired', 'disk_reserve'), count, 0)) AS lost
  FROM edge_agent.events
  WHERE publish_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 31 DAY)
  GROUP BY device_id, epoch, number
),
epochs AS (
  SELECT
    device_id,
    epoch,
    COUNT(*) AS received,
    MAX(number) - MIN(number) + 1 - COUNT(*) AS missing,
    SUM(lost) AS lost
  FROM numbered
  GROUP BY device_id, epoch
)
SELECT
  device_id,
  COUNT(*) AS epochs,
  SUM(received) AS received,
  SUM(missing) AS missing,
  SUM(lost) AS reported_lost,
  SUM(missing) - SUM(lost) AS unexplained
FROM epochs
GROUP BY device_id
ORDER BY unexplained DESC, device_id
