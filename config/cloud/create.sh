#!/usr/bin/env bash
# Creates in a Google Cloud project what the events of edge-agent flow through: topic, table, the subscription that
# fills the table, a topic for what does not fit, and an account for the devices that may do nothing but publish.
#
#     gcloud auth login
#     bash create.sh PROJECT
#
# Run it again whenever you like: what is there stays, the table gets the columns that it does not have yet. So that is
# also how to take a newer version into use. Other names: TOPIC=events LOCATION=EU bash create.sh PROJECT
# docs/cloud.md explains each step, and what it costs.
set -euo pipefail

PROJECT=${1:?usage: bash create.sh PROJECT}
LOCATION=${LOCATION:-US} # of the table: US, EU or a region, https://cloud.google.com/bigquery/docs/locations
DATASET=${DATASET:-edge_agent}
TABLE=${TABLE:-events}
KEEP_DAYS=${KEEP_DAYS:-400} # that a row is kept
TOPIC=${TOPIC:-inference-results}
SUBSCRIPTION=${SUBSCRIPTION:-$TOPIC-to-bigquery}
DEAD_LETTERS=${DEAD_LETTERS:-$TOPIC-dead-letters} # a topic, and the subscription that keeps what comes to it
ACCOUNT=${ACCOUNT:-edge-agent}
MODEL_BUCKET=${MODEL_BUCKET:-} # if [model].url is gs://MODEL_BUCKET/…
IMAGE_BUCKET=${IMAGE_BUCKET:-} # if images of [telemetry.raw_data] is gs://IMAGE_BUCKET/…

schema=$(dirname "$0")/events.schema.json
account=$ACCOUNT@$PROJECT.iam.gserviceaccount.com

# retry COMMAND...: a role that was granted a moment ago takes a minute or two to count.
retry() {
    local left
    for left in 7 6 5 4 3 2 1 0; do
        "$@" && return
        [ "$left" = 0 ] && break
        echo "trying again in ${RETRY_DELAY:-20} s ($left left)" >&2
        sleep "${RETRY_DELAY:-20}"
    done
    echo "create.sh: gave up at: $*" >&2
    return 1
}

gcloud services enable pubsub.googleapis.com bigquery.googleapis.com --project="$PROJECT"

# Pub/Sub acts under this name: it writes the rows and forwards the dead letters.
gcloud beta services identity create --service=pubsub.googleapis.com --project="$PROJECT"
number=$(gcloud projects describe "$PROJECT" --format='value(projectNumber)')
agent=service-$number@gcp-sa-pubsub.iam.gserviceaccount.com

# The table. A query has to say from when on it wants the events, or it would read, and be billed for, all there are.
bq --project_id="$PROJECT" --location="$LOCATION" mk --force --dataset "$PROJECT:$DATASET"
bq --project_id="$PROJECT" mk --force --table \
    --time_partitioning_type=DAY \
    --time_partitioning_field=publish_time \
    --time_partitioning_expiration=$((KEEP_DAYS * 86400)) \
    --require_partition_filter \
    --clustering_fields=kind,device_id \
    --schema="$schema" \
    "$PROJECT:$DATASET.$TABLE"
bq --project_id="$PROJECT" update --schema="$schema" "$PROJECT:$DATASET.$TABLE"
retry bq --project_id="$PROJECT" add-iam-policy-binding --table \
    --member="serviceAccount:$agent" \
    --role=roles/bigquery.dataEditor \
    "$PROJECT:$DATASET.$TABLE"

# The topic, and the one for messages that do not fit the table.
for topic in "$TOPIC" "$DEAD_LETTERS"; do
    gcloud pubsub topics describe "$topic" --project="$PROJECT" >/dev/null 2>&1 ||
        gcloud pubsub topics create "$topic" --project="$PROJECT"
done
gcloud pubsub subscriptions describe "$DEAD_LETTERS" --project="$PROJECT" >/dev/null 2>&1 ||
    gcloud pubsub subscriptions create "$DEAD_LETTERS" --project="$PROJECT" \
        --topic="$DEAD_LETTERS" \
        --message-retention-duration=31d \
        --expiration-period=never
retry gcloud pubsub topics add-iam-policy-binding "$DEAD_LETTERS" --project="$PROJECT" \
    --member="serviceAccount:$agent" \
    --role=roles/pubsub.publisher

# What an update does not name goes back to its default, so both commands name everything.
options=(
    --bigquery-table="$PROJECT:$DATASET.$TABLE"
    --use-table-schema
    --drop-unknown-fields # an agent that is newer than the table loses a column, not the event
    --write-metadata
    --dead-letter-topic="$DEAD_LETTERS"
    --max-delivery-attempts=100
    --min-retry-delay=10s
    --max-retry-delay=600s
    --message-retention-duration=31d # so long there is time to mend table or roles
    --expiration-period=never        # by default it is deleted after 31 days without a message
)
if gcloud pubsub subscriptions describe "$SUBSCRIPTION" --project="$PROJECT" >/dev/null 2>&1; then
    retry gcloud pubsub subscriptions update "$SUBSCRIPTION" --project="$PROJECT" "${options[@]}"
else
    retry gcloud pubsub subscriptions create "$SUBSCRIPTION" --project="$PROJECT" --topic="$TOPIC" "${options[@]}"
fi
gcloud pubsub subscriptions add-iam-policy-binding "$SUBSCRIPTION" --project="$PROJECT" \
    --member="serviceAccount:$agent" \
    --role=roles/pubsub.subscriber

# The account of the devices.
gcloud iam service-accounts describe "$account" --project="$PROJECT" >/dev/null 2>&1 ||
    gcloud iam service-accounts create "$ACCOUNT" --project="$PROJECT" --display-name="edge-agent devices"
retry gcloud pubsub topics add-iam-policy-binding "$TOPIC" --project="$PROJECT" \
    --member="serviceAccount:$account" \
    --role=roles/pubsub.publisher
if [ -n "$MODEL_BUCKET" ]; then
    retry gcloud storage buckets add-iam-policy-binding "gs://$MODEL_BUCKET" \
        --member="serviceAccount:$account" \
        --role=roles/storage.objectViewer
fi
if [ -n "$IMAGE_BUCKET" ]; then
    retry gcloud storage buckets add-iam-policy-binding "gs://$IMAGE_BUCKET" \
        --member="serviceAccount:$account" \
        --role=roles/storage.objectCreator # they can neither read pictures nor replace them
fi

cat <<END

Done. For a device:

    gcloud iam service-accounts keys create key.json --iam-account=$account --project=$PROJECT

key.json belongs into /etc/credstore/edge-agent.google-credentials.json of the device (root only), and nowhere else.
In its /etc/edge-agent.toml:

    [telemetry]
    sink = "pubsub://$PROJECT/$TOPIC"
END
