"""GStreamer's RTSP server, for the system's Python: `/usr/bin/python3 rtsp_server.py PORT [USER PASSWORD]`.

It prints its port, and serves until its standard input is closed:

    /h264   red, 320x240, 20 frames per second
    /jpeg   the same as JPEG
    /short  ten frames, then the end
    /sound  no picture

With a user and a password it lets nobody else in (digest authentication). `rtsp.py` starts it.
"""

import sys
import threading

import gi

for name in ("Gst", "GstRtsp", "GstRtspServer"):
    gi.require_version(name, "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402  their versions are chosen above

RED = "videotestsrc is-live=true pattern=red {} ! video/x-raw,width=320,height=240,framerate=20/1,format=I420"
# One slice per picture: rtph264pay would put parameter sets between the slices of a key frame.
H264 = "x264enc tune=zerolatency sliced-threads=false speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0"
STREAMS = {
    "/h264": f"( {RED.format('')} ! {H264} )",
    "/jpeg": f"( {RED.format('')} ! jpegenc ! rtpjpegpay name=pay0 )",
    "/short": f"( {RED.format('num-buffers=10')} ! {H264} )",
    "/sound": "( audiotestsrc is-live=true ! mulawenc ! rtppcmupay name=pay0 )",
}
RIGHTS = (GstRtspServer.RTSP_PERM_MEDIA_FACTORY_ACCESS, GstRtspServer.RTSP_PERM_MEDIA_FACTORY_CONSTRUCT)


def main(port: str, *account: str) -> None:
    """Serve on 127.0.0.1."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    for path, pipeline in STREAMS.items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(pipeline)
        factory.set_permissions(permissions())
        server.get_mount_points().add_factory(path, factory)
    if account:
        server.set_auth(only_for(*account))
    server.attach(None)
    loop = GLib.MainLoop()
    threading.Thread(target=quit_with_input, args=(loop,), daemon=True).start()
    sys.stdout.write(f"{server.get_bound_port()}\n")
    sys.stdout.flush()
    loop.run()


def permissions() -> GstRtspServer.RTSPPermissions:
    """Say what a viewer may do with a stream."""
    made = GstRtspServer.RTSPPermissions()
    for right in RIGHTS:
        made.add_permission_for_role("viewer", right, True)
    return made


def only_for(user: str, password: str) -> GstRtspServer.RTSPAuth:
    """Ask every client for this account."""
    token = GstRtspServer.RTSPToken()
    token.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "viewer")
    made = GstRtspServer.RTSPAuth()
    made.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
    made.add_digest(user, password, token)
    return made


def quit_with_input(loop: GLib.MainLoop) -> None:
    """End the server when whoever started it closes the pipe, or is gone."""
    sys.stdin.read()
    loop.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
