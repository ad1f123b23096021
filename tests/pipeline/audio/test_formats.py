"""Every format at every rate, with one and two channels: one table, printed by `pytest -rP`."""

from pipeline.audio.decode import AudioSettings
from tests.support.format_table import FORMATS, SECONDS, described, table

MOST_ADDED_S = 0.25  # by a coding, to complete frames and to start
MOST_LOST_S = 0.05  # by FFmpeg's encoder of WMA, which drops its last frame


def test_every_format_is_decoded_at_every_rate_and_channel_count_lossless_ones_to_the_sample():
    cells = table()
    print(described(cells))  # noqa: T201
    forms = {form.name: form for form in FORMATS}
    wrong = {}
    for (name, *column), cell in cells.items():
        form = forms[name]
        if cell is None:
            continue
        if form.error is None:
            is_right = -MOST_LOST_S <= cell.seconds - SECONDS <= MOST_ADDED_S
        else:
            is_right = not cell.missing and cell.error <= form.error + 1e-6
            is_right &= abs(cell.seconds - SECONDS) * AudioSettings().sample_rate <= 1
        if not is_right or cell.correlation < form.correlation:
            wrong[name, *column] = cell
    assert wrong == {}
    assert sum(cell is not None for cell in cells.values()) > 500
