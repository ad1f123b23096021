"""From the bytes of one recording to segments at the model's sample rate.

Contract: `decode.read_segments` yields segments of at least one sample, or raises `AudioError` where the bytes or the
request are at fault; what reading the bytes raises passes through unchanged. Terms: a frame is one sample of every
channel; rates are in Hz, lengths and positions in frames of the source or in seconds (`_s`), sizes in bytes. Arrays of
audio are (frames, channels) in the decoders, and 1-D (samples,) behind them.

The modules, from the ground up: `samples` (arrays), `source` (bytes), `contents` (what a walk finds); `mpeg`,
`mpeg_headers`, `flac`, `ogg`, `riff`, `frames` and `headers` (walks, format by format); `containers` (which format, and
what is in front and behind), `spans` (the requested part), `cutter` (cuts what is long), `silence`, `places`, `voice`
(where nobody speaks), `sndfile` and `ffmpeg` (the two decoders), `decoders` (which of them), `decode` (what callers
use).
"""
