"""The service without a network, a clock, credentials, an Edge TPU, a source or a model: it runs, and says so.

Not here: the kernel, its clock and its devices are those of the host. That there is no Edge TPU is taken for granted.
"""

import datetime
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.servers.pubsub import PubSubServer
from tests.standin.models import edgetpu_model
from tests.system.machine import UNIT
from tests.system.service import MODEL, Service, settings

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
CREDSTORE = "/etc/credstore/edge-agent.google-credentials.json"


def assert_it_just_runs(service: Service) -> None:
    assert service.machine.property("ActiveState") == "active"
    assert service.machine.property("NRestarts") == "0"
    assert service.report()["worker"]["deaths"] == 0


def test_without_a_network_it_starts_at_boot_and_keeps_events(service: Service) -> None:
    service.configure(settings())
    # It stays down over the boot: nothing in the machine may bring it up.
    service.machine.run("ip", "link", "set", "lo", "down")
    service.machine.reboot()
    service.wait_for_status("events are not sent", "vibration_classifier", "events wait")
    assert "network-online.target" not in service.machine.property("After")
    assert_it_just_runs(service)
    service.machine.run("ip", "link", "set", "lo", "up")
    service.nothing_lost()
    assert_it_just_runs(service)


def test_without_a_set_clock_it_says_so_until_the_clock_is_set(service: Service) -> None:
    service.work(settings())
    service.wait_for_status("the clock is not set yet")
    assert {event["time_source"] for event in service.events.by_id.values()} == {"unverified"}
    service.machine.write("/run/systemd/timesync/synchronized", "")
    service.wait_for_events(
        lambda events: events.of("result")[-1]["time_source"] == "synchronized", "the time of events is trusted"
    )
    service.nothing_lost()
    service.machine.wait_until(lambda: "clock" not in service.machine.status_text(), "status without the clock")
    assert_it_just_runs(service)


def test_without_credentials_it_keeps_events_until_they_are_there(service: Service, tmp_path: Path) -> None:
    machine = service.machine
    machine.configure_unit(
        "google",
        "[Service]\nUnsetEnvironment=PUBSUB_EMULATOR_HOST\nEnvironment=GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=/etc/roots\n",
    )
    service.start(settings())
    service.wait_for_status("no usable credentials", CREDSTORE, "vibration_classifier")
    assert_it_just_runs(service)

    key, chain = certificate("pubsub.googleapis.com")
    machine.write("/etc/roots", chain.decode())
    machine.run("echo 127.0.0.1 pubsub.googleapis.com >>/etc/hosts")
    machine.write(CREDSTORE, json.dumps(service_account()), 0o600)
    service.use(PubSubServer(certificate=(key, chain)), 443)
    machine.systemctl("restart", UNIT)
    service.nothing_lost()
    assert "authorization" in service.server.requests[0].metadata
    environments = machine.run("cat", f"/proc/{service.worker}/environ").stdout
    assert "CREDENTIALS" not in environments
    assert "CREDENTIALS_DIRECTORY" in machine.run("cat", f"/proc/{service.pid}/environ").stdout


def certificate(host: str) -> tuple[bytes, bytes]:
    """Make a key and a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return pem(key), made.public_bytes(serialization.Encoding.PEM)


def service_account() -> dict[str, str]:
    """Return a new key of a service account."""
    return {
        "type": "service_account",
        "client_email": "edge@project.iam.gserviceaccount.com",
        "private_key": pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)).decode(),
        "private_key_id": "1",
        "token_uri": "http://127.0.0.1:1/token",
    }


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key as text."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_without_an_edge_tpu_what_needs_one_waits(service: Service, tmp_path: Path) -> None:
    model = "/srv/model_edgetpu.tflite"
    (tmp_path / "model").write_bytes(edgetpu_model((ROOT / "edge_agent/demo/vibration_classifier.tflite").read_bytes()))
    service.machine.copy_in(tmp_path / "model", model)
    for accelerator in ("auto", "edgetpu"):
        service.start(settings(model=model, inference=f'accelerator = "{accelerator}"'))
        line = service.wait_for_status("no model yet", "it needs an Edge TPU")
        assert "install libedgetpu1-std" in line
        assert_it_just_runs(service)

    # A model for the CPU instead: only now does it matter that the settings insist.
    service.machine.run("cp", MODEL, model)
    service.wait_for_status("no model yet", "not compiled for the Edge TPU")
    assert_it_just_runs(service)
    service.configure(settings(model=model, inference='accelerator = "auto"'))
    service.machine.systemctl("reload", UNIT)
    service.nothing_lost()
    service.wait_for_status("on cpu")
    assert_it_just_runs(service)


def test_without_its_source_it_starts_and_works_when_it_appears(service: Service) -> None:
    source = 'plugin = "recording"\npath = "/srv/data/samples.csv"\nrate = 20\nrepeat = true\n'
    service.configure(settings(source=source))
    service.machine.reboot()
    service.wait_for_journal("the source is not ready yet")
    service.wait_for_status("source trouble", "/srv/data/samples.csv")
    assert_it_just_runs(service)
    service.machine.write("/srv/data/samples.csv", f"{','.join(['0.5'] * 128)}\n")
    service.nothing_lost()
    service.machine.wait_until(lambda: "trouble" not in service.machine.status_text(), "status without the trouble")
    assert_it_just_runs(service)


def test_without_a_model_it_waits_for_one(service: Service) -> None:
    service.start(settings(model="/srv/model.tflite"))
    service.wait_for_status("no model yet", "/srv/model.tflite")
    assert_it_just_runs(service)
    service.machine.run("cp", MODEL, "/srv/model.tflite")
    service.nothing_lost()
    assert_it_just_runs(service)
