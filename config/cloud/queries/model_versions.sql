-- Which model version runs on how many devices, by the last event of each in 7 days, and how many have refused or given up which.
WITH running AS (
  SELECT
    device_id,
    model_name,
    IF(state = 'rolled_back', previous_version, model_version) AS model_version,
    degraded,
    publish_time
  FROM edge_agent.events
  WHERE publish_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 7 DAY)
    AND model_version IS NOT NULL
    AND (kind != 'model' OR state IN ('trial', 'committed', 'rolled_back'))
  QUALIFY ROW_NUMBER() OVER (PARTITION BY device_id ORDER BY event_id DESC) = 1
),
fleet AS (
  SELECT
    model_name,
    model_version,
    COUNT(*) AS devices,
    COUNTIF(degraded IS NOT NULL) AS degraded,
    MIN(publish_time) AS least_recent,
    STRING_AGG(device_id, ', ' ORDER BY device_id LIMIT 20) AS some_devices
  FROM running
  GROUP BY model_name, model_version
),
refused AS (
  SELECT model_name, model_version, COUNT(DISTINCT device_id) AS refusals, MAX(reason) AS reason
  FROM edge_agent.events
  WHERE publish_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 7 DAY) AND kind = 'model'
    AND state IN ('rejected', 'rolled_back')
  GROUP BY model_name, model_version
)
SELECT
  model_name,
  model_version,
  IFNULL(fleet.devices, 0) AS devices,
  IFNULL(fleet.degraded, 0) AS degraded,
  fleet.least_recent,
  fleet.some_devices,
  IFNULL(refused.refusals, 0) AS refused_by,
  refused.reason
FROM fleet
FULL JOIN refused USING (model_name, model_version)
ORDER BY devices DESC, model_name, model_version
