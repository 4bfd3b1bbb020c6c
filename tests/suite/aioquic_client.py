"""An independent WebTransport client, aioquic, against a running server.

Usage: aioquic_client.py URL TOKEN, where URL is the server's QUIC listener with its prefix, for example
https://localhost:8443/chatbox. Opens a session, attaches, sends one message on a stream of its own, reads the
answer to its end and checks it, and fetches the discovery document over HTTP/3 on the same connection.
Exits with 0 when everything holds, else prints what does not and exits with 1.
"""

import asyncio
import hashlib
import json
import ssl
import sys
import uuid
from urllib.parse import urlsplit

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, FrameType, H3Connection, Setting
from aioquic.h3.events import DataReceived, HeadersReceived, WebTransportStreamDataReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, ProtocolNegotiated, StreamReset

DEADLINE = 30


def check(holds, text):
    if not holds:
        raise AssertionError(text)


def expect(name, got, expected):
    check(got == expected, f"{name}: got {got!r}, expected {expected!r}")


class Client(QuicConnectionProtocol):
    """One QUIC connection. Each stream has a queue of (kind, value)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = None
        self.streams = {}
        self.ended = None

    def queue(self, stream):
        return self.streams.setdefault(stream, asyncio.Queue())

    def quic_event_received(self, event):
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic, enable_webtransport=True)
        elif isinstance(event, StreamReset):
            self.queue(event.stream_id).put_nowait(("reset", event.error_code))
        elif isinstance(event, ConnectionTerminated):
            self.ended = f"{event.error_code:#x} {event.reason_phrase}"
            for queue in self.streams.values():
                queue.put_nowait(("closed", self.ended))
        if self.http is None:
            return
        for event in self.http.handle_event(event):
            if isinstance(event, HeadersReceived):
                self.queue(event.stream_id).put_nowait(("headers", dict(event.headers)))
            elif isinstance(event, (DataReceived, WebTransportStreamDataReceived)):
                self.queue(event.stream_id).put_nowait(("data", event.data))
            if getattr(event, "stream_ended", False):
                self.queue(event.stream_id).put_nowait(("end", None))

    async def next(self, stream):
        return await asyncio.wait_for(self.queue(stream).get(), DEADLINE)

    def request(self, headers, end):
        stream = self._quic.get_next_available_stream_id()
        self.http.send_headers(stream, headers, end_stream=end)
        self.transmit()
        return stream

    def open(self, session, frame, end):
        """Opens a bidirectional stream of the session with one frame on it."""
        stream = self.http.create_webtransport_stream(session)
        # aioquic does not note on streams that it opened itself that what comes back is not HTTP/3 frames.
        with self.http._get_or_create_stream(stream) as state:
            state.frame_type, state.session_id = FrameType.WEBTRANSPORT_STREAM, session
        self._quic.send_stream_data(stream, json.dumps(frame).encode() + b"\n", end_stream=end)
        self.transmit()
        return stream

    async def frames(self, stream):
        """The frames of a stream, to its end."""
        rest = b""
        while True:
            kind, value = await self.next(stream)
            if kind == "end":
                expect("bytes after the last line feed", rest, b"")
                return
            check(kind == "data", f"stream {stream}: got {kind} {value!r}")
            *lines, rest = (rest + value).split(b"\n")
            for line in lines:
                yield json.loads(line)


def authority(url):
    return url.netloc.encode()


async def converse(client, url, token):
    while client.http is None or client.http.received_settings is None:
        check(client.ended is None, f"closed before SETTINGS: {client.ended}")
        await asyncio.sleep(0.01)
    settings = client.http.received_settings
    expect("ENABLE_CONNECT_PROTOCOL", settings.get(Setting.ENABLE_CONNECT_PROTOCOL), 1)
    expect("H3_DATAGRAM", settings.get(Setting.H3_DATAGRAM), 1)

    base = url.path.rstrip("/")
    head = [(b":scheme", b"https"), (b":authority", authority(url))]
    connect_head = [(b":method", b"CONNECT"), *head, (b":path", f"{base}/wt".encode()), (b":protocol", b"webtransport")]
    session = client.request(connect_head, end=False)
    kind, headers = await client.next(session)
    expect("answer to CONNECT", (kind, headers.get(b":status")), ("headers", b"200"))

    attach_id = str(uuid.uuid4())
    attach = client.open(session, {"type": "attach", "id": attach_id, "token": token}, end=False)
    events = client.frames(attach)
    status = await anext(events)
    expect("answer to attach", status["type"], "connection_status")
    expect("re of the status", status.get("re"), attach_id)
    expect("transport", status["transport"], "webtransport")
    expect("user_id", status["user_id"], "aioquic")

    question = "What carries this conversation?"
    message_id = str(uuid.uuid4())
    message = {"type": "user_message", "id": message_id, "session_id": status["session_id"], "content": question}
    text, last, seen = b"", None, []
    async for frame in client.frames(client.open(session, message, end=True)):
        seen.append(frame["type"])
        if frame["type"] == "error":
            raise AssertionError(f"got {frame['error']}")
        if frame["type"] != "ai_response":
            continue
        expect("re of a piece", frame.get("re"), message_id)
        if frame["metadata"]["done"] == "false":
            expect("offset", frame["offset"], len(text))
            text += frame["content"].encode()
        else:
            check(last is None, "the reply ended twice")
            last = frame
    expect("first frame", seen[0], "accepted")
    check(last is not None, f"the reply did not end, got {seen}")
    check(text, "the reply has no text")
    expect("state", last["state"], "complete")
    expect("length", last["length"], len(text))
    expect("sha256", last["sha256"], hashlib.sha256(text).hexdigest())
    expect("reply_to", last["reply_to"], 1)

    get = [(b":method", b"GET"), *head, (b":path", f"{base}/.well-known/chatbox".encode())]
    stream = client.request(get, end=True)
    kind, headers = await client.next(stream)
    expect("answer to GET", (kind, headers.get(b":status")), ("headers", b"200"))
    body = b""
    while (item := await client.next(stream))[0] == "data":
        body += item[1]
    expect("end of the answer to GET", item[0], "end")
    check(json.loads(body)["webtransport"].endswith("/wt"), f"discovery names no WebTransport: {body!r}")
    return len(text), len(seen)


async def main(address, token):
    url = urlsplit(address)
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=H3_ALPN,
        max_datagram_frame_size=65536,
        # The certificate is self-signed; identity is not what is tested here.
        verify_mode=ssl.CERT_NONE,
    )
    host = "127.0.0.1" if url.hostname == "localhost" else url.hostname
    configuration.server_name = url.hostname
    async with connect(host, url.port, configuration=configuration, create_protocol=Client) as client:
        length, frames = await asyncio.wait_for(converse(client, url, token), DEADLINE * 2)
    print(f"aioquic: {frames} frames, {length} bytes of reply over WebTransport, discovery over HTTP/3")


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1], sys.argv[2]))
    except (AssertionError, OSError, ConnectionError, TimeoutError) as err:
        sys.exit(f"aioquic: {type(err).__name__}: {err}")
