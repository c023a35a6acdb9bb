"""config/cloud/create.sh: valid, of commands that Google documents, good for a second run, and sparing with roles."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cloud.google_cloud import NUMBER, GoogleCloud
from tests.cloud.subscription import Columns

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "config/cloud/create.sh"
AGENT = f"serviceAccount:service-{NUMBER}@gcp-sa-pubsub.iam.gserviceaccount.com"
DEVICES = "serviceAccount:edge-agent@project.iam.gserviceaccount.com"
# Who may do what, and nothing else. https://cloud.google.com/pubsub/docs/access-control#roles,
# https://cloud.google.com/pubsub/docs/create-bigquery-subscription and …/dead-letter-topics say what Pub/Sub itself
# needs, https://cloud.google.com/storage/docs/access-control/iam-roles has the roles for the buckets.
ROLES = {
    ("events", "roles/bigquery.dataEditor", AGENT),
    ("inference-results-dead-letters", "roles/pubsub.publisher", AGENT),
    ("inference-results-to-bigquery", "roles/pubsub.subscriber", AGENT),
    ("inference-results", "roles/pubsub.publisher", DEVICES),
    ("models", "roles/storage.objectViewer", DEVICES),
    ("pictures", "roles/storage.objectCreator", DEVICES),
}
# As https://cloud.google.com/sdk/gcloud/reference and https://cloud.google.com/bigquery/docs/reference/bq-cli-reference
# have them; gcloud's --project and --format, and bq's --project_id and --location, are for all commands.
SUBSCRIPTION_FLAGS = {
    "--bigquery-table",
    "--use-table-schema",
    "--drop-unknown-fields",
    "--write-metadata",
    "--dead-letter-topic",
    "--max-delivery-attempts",
    "--min-retry-delay",
    "--max-retry-delay",
    "--message-retention-duration",
    "--expiration-period",
}
GRANT = {"--member", "--role"}
FLAGS = {
    "gcloud services enable": set(),
    "gcloud beta services identity create": {"--service"},
    "gcloud projects describe": set(),
    "gcloud pubsub topics describe": set(),
    "gcloud pubsub topics create": set(),
    "gcloud pubsub topics add-iam-policy-binding": GRANT,
    "gcloud pubsub subscriptions describe": set(),
    "gcloud pubsub subscriptions create": SUBSCRIPTION_FLAGS | {"--topic"},
    "gcloud pubsub subscriptions update": SUBSCRIPTION_FLAGS,
    "gcloud pubsub subscriptions add-iam-policy-binding": GRANT,
    "gcloud iam service-accounts describe": set(),
    "gcloud iam service-accounts create": {"--display-name"},
    "gcloud storage buckets add-iam-policy-binding": GRANT,
    "bq mk": {
        "--force",
        "--dataset",
        "--table",
        "--time_partitioning_type",
        "--time_partitioning_field",
        "--time_partitioning_expiration",
        "--require_partition_filter",
        "--clustering_fields",
        "--schema",
    },
    "bq update": {"--schema"},
    "bq add-iam-policy-binding": GRANT | {"--table"},
}
FOR_ALL = {"gcloud": {"--project", "--format"}, "bq": {"--project_id", "--location"}}
# Writes down what it is called with. `describe` finds what the file "there" says; what "refused" names fails as often
# as that file has lines.
STAND_IN = """\
#!/usr/bin/env bash
cd "$(dirname "$0")"
{ basename "$0"; printf '%s\\n' "$@"; } >> calls
echo >> calls
case "$*" in
    "projects describe"*) echo NUMBER ;;
    *describe*) test -e there ;;
    *"$(grep -m 1 . refused 2>/dev/null || echo nothing)"*) sed -i 1d refused; exit 1 ;;
esac
"""


class Tools:
    """Stand-ins for gcloud and bq, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("gcloud", "bq"):
            (folder / name).write_text(STAND_IN.replace("NUMBER", NUMBER))
            (folder / name).chmod(0o755)

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "calls").write_text("")
        environ = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", "RETRY_DELAY": "0", **variables}
        return subprocess.run(
            ["bash", str(SCRIPT), "project"], env=environ, capture_output=True, text=True, check=False, timeout=60
        )

    def calls(self) -> list[list[str]]:
        return [call.split("\n") for call in (self.folder / "calls").read_text().split("\n\n") if call]


def command(call: list[str]) -> str:
    """Return the name of what is called: gcloud pubsub topics create."""
    words = [word for word in call if not word.startswith("--")]
    return max((name for name in FLAGS if words[: len(name.split())] == name.split()), key=len, default=" ".join(words))


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


def test_it_is_good_bash() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert not os.access(SCRIPT, os.X_OK)  # as the package has it, among the examples


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_no_fault() -> None:
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)


@pytest.mark.parametrize("there", [False, True])
def test_commands_and_flags_are_those_that_google_documents(tools: Tools, *, there: bool) -> None:
    if there:
        (tools.folder / "there").touch()
    done = tools.run(MODEL_BUCKET="models", IMAGE_BUCKET="pictures")
    assert done.returncode == 0, done.stderr
    calls = tools.calls()
    for call in calls:
        flags = {word.partition("=")[0] for word in call if word.startswith("--")}
        assert flags <= FLAGS[command(call)] | FOR_ALL[call[0]], call
        assert (
            f"--project{'_id' if call[0] == 'bq' else ''}=project" in call
            or "--member" in str(call)
            or (command(call) == "gcloud projects describe")
        )
    created = [command(call).split()[-2] for call in calls if call[0] == "gcloud" and "create" in call]
    assert created == (
        ["identity"]
        if there
        else ["identity", "topics", "topics", "subscriptions", "subscriptions", "service-accounts"]
    )


def test_the_devices_may_only_publish(tools: Tools) -> None:
    tools.run(MODEL_BUCKET="models", IMAGE_BUCKET="pictures")
    granted = set()
    for call in tools.calls():
        given = dict(word.split("=", 1) for word in call if word.startswith(("--role=", "--member=")))
        if given:
            resource = next(word for word in call[call.index("add-iam-policy-binding") + 1 :] if word[0] != "-")
            granted.add((resource.removeprefix("gs://").rpartition(".")[2], given["--role"], given["--member"]))
    assert granted == ROLES


def test_an_update_names_all_that_the_creation_did(tools: Tools) -> None:
    tools.run()
    [created] = [call for call in tools.calls() if "--use-table-schema" in call]
    (tools.folder / "there").touch()
    tools.run()
    [updated] = [call for call in tools.calls() if "--use-table-schema" in call]
    assert ("create" in created, "update" in updated) == (True, True)
    assert {word.partition("=")[0] for word in created if word[:2] == "--"} == SUBSCRIPTION_FLAGS | {
        "--topic",
        "--project",
    }
    assert set(created) - set(updated) == {"create", "--topic=inference-results"}


def test_a_role_that_does_not_count_yet_is_waited_for(tools: Tools) -> None:
    (tools.folder / "refused").write_text("subscriptions create inference-results-to-bigquery\n" * 7)
    done = tools.run()
    assert done.returncode == 0
    assert done.stderr.count("trying again") == 7


def test_one_that_never_does_ends_it_with_the_command(tools: Tools) -> None:
    (tools.folder / "refused").write_text("--role=roles/bigquery.dataEditor\n" * 100)
    done = tools.run()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "create.sh: gave up at: bq --project_id=project add-iam-policy-binding"
    )
    assert [command(call) for call in tools.calls()].count("bq add-iam-policy-binding") == 8


def test_without_a_project_it_says_what_it_wants() -> None:
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage: bash create.sh PROJECT" in done.stderr


# ------------------------------------------------------------------------------------------ the real gcloud and bq


@pytest.fixture
def google_cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleCloud]:
    """Google Cloud on this machine, which gcloud and bq talk to during the test."""
    gcloud = shutil.which("gcloud")
    found = sorted(Path(gcloud).resolve().parents[1].glob("platform/bq/discovery_*/bigquery.json")) if gcloud else []
    if not found or not shutil.which("bq"):
        pytest.skip("Google's command line tools are not installed")
    (tmp_path / "token").write_text("token")
    with GoogleCloud(found[0]) as cloud:
        (tmp_path / "bigqueryrc").write_text(f"api={cloud.url}\n")
        for name, value in {
            "HOME": str(tmp_path),
            "BIGQUERYRC": str(tmp_path / "bigqueryrc"),
            "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
            "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(tmp_path / "token"),
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
            "CLOUDSDK_CORE_CHECK_GCE_METADATA": "0",
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{cloud.url}/storage/v1/",
            **{
                f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{api}": f"{cloud.url}/"
                for api in ("CLOUDRESOURCEMANAGER", "IAM", "PUBSUB", "SERVICEUSAGE")
            },
            "MODEL_BUCKET": "models",
            "IMAGE_BUCKET": "pictures",
            "RETRY_DELAY": "0",
        }.items():
            monkeypatch.setenv(name, value)
        yield cloud


def run_for_real() -> None:
    done = subprocess.run(["bash", str(SCRIPT), "project"], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "trying again" not in done.stderr


@pytest.mark.system
@pytest.mark.timeout(900)
def test_googles_own_tools_take_every_command(google_cloud: GoogleCloud, columns: Columns) -> None:
    run_for_real()
    assert google_cloud.roles() == ROLES
    table: dict[str, Any] = google_cloud.resources["/bigquery/v2/projects/project/datasets/edge_agent/tables/events"]
    assert table["schema"] == {"fields": columns}
    assert table["timePartitioning"] == {
        "type": "DAY",
        "field": "publish_time",
        "expirationMs": 400 * 86_400_000,
        "requirePartitionFilter": True,
    }
    assert table["clustering"] == {"fields": ["kind", "device_id"]}
    name = "/v1/projects/project/subscriptions/inference-results-to-bigquery"
    subscription = google_cloud.resources[name]
    wanted = {
        "bigqueryConfig": {
            "table": "project:edge_agent.events",
            "useTableSchema": True,
            "dropUnknownFields": True,
            "writeMetadata": True,
        },
        "deadLetterPolicy": {
            "deadLetterTopic": "projects/project/topics/inference-results-dead-letters",
            "maxDeliveryAttempts": 100,
        },
        "retryPolicy": {"minimumBackoff": "10s", "maximumBackoff": "600s"},
        "messageRetentionDuration": "2678400s",
        "expirationPolicy": {},
    }
    assert {key: subscription[key] for key in wanted} == wanted
    assert subscription["topic"] == "projects/project/topics/inference-results"

    google_cloud.requests.clear()
    run_for_real()
    assert google_cloud.roles() == ROLES
    created = {path for method, path, _ in google_cloud.requests if method == "PUT" and "/v1/projects" in path}
    assert created == set()
    [update] = [body for method, path, body in google_cloud.requests if method == "PATCH" and path == name]
    assert {key: update["subscription"][key] for key in wanted} == wanted
