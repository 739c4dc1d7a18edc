"""The benchmark of the train step: what is wrong is not timed, what is right is."""

from benchmarks import train_step


def test_a_contestant_is_checked_and_then_timed():
    result = train_step.measure("chunked", "full")
    assert result["layers"] == 2 and result["tokens_per_second"] > 0
    assert 0 <= result["difference"] <= train_step.TOLERANCE
    assert result["mfu"] is None, "the peak of a CPU is not in the table"


def test_a_kernel_that_ignores_documents_is_not_timed(monkeypatch):
    attention = train_step.attention

    def leaks(q, k, v, segments, *, implementation):
        if implementation == "chunked":
            segments = segments * 0 + 1
        return attention(q, k, v, segments, implementation=implementation)

    monkeypatch.setattr(train_step, "attention", leaks)
    result = train_step.measure("chunked", "full")
    assert "seconds" not in result and "differs from the plain form" in result["wrong"]


def test_a_contestant_that_fails_says_why():
    assert (
        "no such kernel"
        in train_step.last_line(["python", "-c", "raise SystemExit('no such kernel')"])["failed"]
    )
