"""Plays a recording into a Deepgram-compatible server with the unchanged Deepgram SDK and prints what comes back, one JSON object a line.

usage: deepgram_live.py URL RAW ENCODING RATE CHANNELS [--fast] [--finalize] [--hold] [--params JSON]
"""
import argparse
import json
import sys
import threading
import time

from deepgram import DeepgramClient
from deepgram.core.events import EventType
from deepgram.environment import DeepgramClientEnvironment

FRAME_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("url", "raw", "encoding"):
        parser.add_argument(name)
    parser.add_argument("rate", type=int)
    parser.add_argument("channels", type=int)
    parser.add_argument("--fast", action="store_true", help="send without waiting for real time")
    parser.add_argument("--finalize", action="store_true", help="flush once in the middle")
    parser.add_argument("--hold", action="store_true", help="stay connected when the audio is over, and never close the stream")
    parser.add_argument("--params", default="{}")
    options = parser.parse_args()

    ws = options.url.replace("http", "ws", 1)
    client = DeepgramClient(
        api_key="any",
        environment=DeepgramClientEnvironment(base=options.url, production=ws, agent=ws, agent_rest=options.url),
    )
    params = {
        "model": "nova-3",
        "encoding": options.encoding,
        "sample_rate": options.rate,
        "channels": options.channels,
        "multichannel": options.channels > 1,
        "interim_results": True,
        "endpointing": 300,
        "utterance_end_ms": "1000",
        "vad_events": True,
        "tag": ["sdk", "journey"],
    } | json.loads(options.params)

    def say(kind: str, **data) -> None:
        print(json.dumps({"event": kind, **data}), flush=True)

    def on_message(message) -> None:
        kind = getattr(message, "type", None) or type(message).__name__
        if kind == "Results":
            best = message.channel.alternatives[0]
            say(
                "Results",
                channel=int(message.channel_index[0]),
                start=message.start,
                duration=message.duration,
                is_final=message.is_final,
                speech_final=message.speech_final,
                from_finalize=message.from_finalize,
                text=best.transcript,
                words=[[w.word, w.start, w.end, w.confidence] for w in best.words],
                request_id=message.metadata.request_id,
            )
        else:
            say(kind)

    width = {"linear16": 2, "mulaw": 1, "alaw": 1, "linear32": 4}[options.encoding] * options.channels
    with open(options.raw, "rb") as file:
        audio = file.read()
    with client.listen.v1.connect(**params) as socket:
        closed = threading.Event()
        socket.on(EventType.OPEN, lambda _: say("open"))
        socket.on(EventType.MESSAGE, on_message)
        socket.on(EventType.ERROR, lambda error: say("error", text=str(error)))
        socket.on(EventType.CLOSE, lambda _: (say("close"), closed.set()))
        listener = threading.Thread(target=socket.start_listening, daemon=True)
        listener.start()
        step = int(options.rate * FRAME_S) * width
        begin = time.monotonic()
        try:
            for n, at in enumerate(range(0, len(audio), step)):
                if not options.fast:
                    time.sleep(max(0.0, begin + (n + 1) * FRAME_S - time.monotonic()))
                socket.send_media(audio[at : at + step])
                if options.finalize and at // step == len(audio) // step // 2:
                    socket.send_finalize()
            socket.send_keep_alive()
            if not options.hold:
                socket.send_close_stream()
        except Exception as error:  # the journey decides what a broken connection means
            say("broken", text=f"{type(error).__name__}: {error}")
            sys.exit(3)
        if not closed.wait(60):
            say("timeout")
            sys.exit(4)


if __name__ == "__main__":
    main()
