"""The command line of `edge-agent release`; `edge_agent.publisher.commands` carries it out."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

TASKS = ("classification", "detection", "regression", "anomaly", "raw")

if TYPE_CHECKING:
    Steps: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_steps(release: argparse.ArgumentParser) -> None:
    """Add the steps of a release, from the key to the list."""
    steps = release.add_subparsers(required=True, metavar="STEP", dest="release")
    _add_new_key(steps)
    _add_build(steps)
    _add_sign(steps)
    _add_show(steps)
    _add_publish(steps)
    _add_promote(steps)
    _add_halt(steps)
    _add_list(steps)
    _add_upload(steps)


def _add_new_key(steps: "Steps") -> None:
    new_key = steps.add_parser("new-key", help="make a key to sign releases with")
    new_key.add_argument("--passphrase", action="store_true", help="protect it with a passphrase")
    new_key.add_argument("file", type=Path, metavar="FILE", help="the private key; the public one is written beside it")


def _add_build(steps: "Steps") -> None:
    build = steps.add_parser("build", help="inspect the files of a model, and make a release of them in a folder")
    build.add_argument("--name", required=True, metavar="NAME", help="of the model; the same for all its releases")
    build.add_argument("--version", required=True, metavar="VERSION", help="of this release, for instance v1.4")
    build.add_argument("--model", required=True, type=Path, metavar="FILE", help="the model that devices run")
    build.add_argument(
        "--twin", type=Path, metavar="FILE", help="the same model before the Edge TPU compiler, for the CPU"
    )
    _add_facts(build)
    _add_golden(build)
    build.add_argument("output", type=Path, metavar="FOLDER", help="where to write the release")


def _add_facts(step: argparse.ArgumentParser) -> None:
    step.add_argument("--labels", type=Path, metavar="FILE", help="the labels, one in each line")
    step.add_argument("--accuracy", type=float, metavar="SHARE", help="as it was measured, from 0 to 1")


def _add_golden(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "--golden",
        type=Path,
        metavar="FILE",
        help="golden samples, which each device tries first: CSV, JSON lines, .npy, a folder of pictures, or .npz",
    )
    build.add_argument(
        "--golden-labels", type=Path, metavar="FILE", help="the right prediction of each of them, one in each line"
    )
    build.add_argument(
        "--task", choices=TASKS, help="as [inference].task on the devices; default: told from the outputs"
    )
    build.add_argument(
        "--tolerance",
        type=float,
        metavar="SHARE",
        help="how far outputs may be from the golden ones, as a share of their span; default: 0.1",
    )
    build.add_argument(
        "--min-agreement", type=float, metavar="SHARE", help="of the golden samples that must agree; default: 1"
    )
    build.add_argument(
        "--min-accuracy", type=float, metavar="SHARE", help="of the golden samples with a label that must be told right"
    )
    build.add_argument(
        "--max-latency", metavar="TIME", help='what 95 %% of them may take on a device at most, for instance "20ms"'
    )


def _add_sign(steps: "Steps") -> None:
    sign = steps.add_parser("sign", help="sign a release, so that devices with the key believe it")
    sign.add_argument("folder", type=Path, metavar="FOLDER", help="what `edge-agent release build` wrote")
    _add_keys(sign, required=True)
    sign.add_argument("--expires", metavar="TIME", help='how long devices may take it, for instance "90d"')


def _add_show(steps: "Steps") -> None:
    show = steps.add_parser("show", help="say what a release is made of, and who has signed it")
    show.add_argument("folder", type=Path, metavar="FOLDER", help="a release")
    show.add_argument(
        "--key", type=Path, metavar="FILE", help="a public key: also say whether devices with it believe it"
    )


def _add_publish(steps: "Steps") -> None:
    publish = steps.add_parser("publish", help="bring a release to where devices look for it")
    publish.add_argument("folder", type=Path, metavar="FOLDER", help="what `edge-agent release build` wrote")
    _add_place(publish)
    _add_audience(publish)
    _add_keys(publish)
    publish.add_argument(
        "--new-interface", action="store_true", help="inputs and outputs may be others than those of the release there"
    )


def _add_promote(steps: "Steps") -> None:
    promote = steps.add_parser("promote", help="change for whom the release is that is out")
    _add_place(promote)
    _add_audience(promote)
    _add_keys(promote)
    promote.add_argument(
        "--expires", metavar="TIME", help='how long devices may take it from now on, for instance "90d"'
    )


def _add_halt(steps: "Steps") -> None:
    halt = steps.add_parser("halt", help="let no device switch to the release that is out any more")
    _add_place(halt)
    _add_keys(halt)
    halt.add_argument("--why", metavar="TEXT", help="what the status of devices says of it")


def _add_list(steps: "Steps") -> None:
    listing = steps.add_parser("list", help="show which releases there are, and for whom they are out")
    _add_place(listing)
    listing.add_argument("--json", action="store_true", help="print it as JSON, for programs")


def _add_upload(steps: "Steps") -> None:
    upload = steps.add_parser("upload", help="upload a model as a single object, with what is known of it as metadata")
    upload.add_argument("model", type=Path, metavar="FILE", help="the model that devices run")
    upload.add_argument("url", metavar="URL", help="where it is to be: gs://BUCKET/OBJECT, file:///FILE or a path")
    upload.add_argument("--version", required=True, metavar="VERSION", help="of this model, for instance v1.4")
    upload.add_argument(
        "--name", default="", metavar="NAME", help="[model].name of the devices, where it is not that of the URL"
    )
    _add_facts(upload)
    _add_audience(upload)
    upload.add_argument("--key", type=Path, metavar="FILE", help="the private key to sign it with")


def _add_place(step: argparse.ArgumentParser) -> None:
    step.add_argument("url", metavar="URL", help="where the releases are: gs://BUCKET/FOLDER, file:///FOLDER or a path")


def _add_audience(step: argparse.ArgumentParser) -> None:
    step.add_argument("--percent", metavar="N", help="for the first N per cent of the devices")
    step.add_argument(
        "--cohort",
        action="append",
        metavar="LABELS",
        help='for all devices with these labels, for instance "site=lyon,line=3"; may be repeated',
    )
    step.add_argument(
        "--shadow", metavar="N", help="the others run it beside their own model, on N per cent of the samples"
    )


def _add_keys(step: argparse.ArgumentParser, *, required: bool = False) -> None:
    step.add_argument(
        "--key",
        required=required,
        type=Path,
        action="append",
        metavar="FILE",
        help="the private key to sign with; may be repeated",
    )
