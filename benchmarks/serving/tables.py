"""What the benchmarks of the server found, as tables for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from optimizer.benching.formats.markdown import md_table

__all__ = ["door", "endings", "huge_pages", "overload", "streams", "throughput"]


def _machine(document: Mapping[str, Any]) -> str:
    cpu = document["environment"]["cpu"]
    return f"{cpu['model']}, {cpu['cores']} cores ({', '.join(cpu['features'])})"


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(md_table(list(titles), [list(line) for line in lines]))


def throughput(document: Mapping[str, Any]) -> str:
    """Servers side by side, with the ratio of each to the first in the same rounds."""
    rows, first = document["rows"], next(iter(document["rows"]))
    lines = []
    for name, row in rows.items():
        ratios = [a / b for a, b in zip(rows[first]["per_second"], row["per_second"], strict=True)]
        said = document["answers"][name]
        lines.append(
            [
                name,
                f"{median(row['per_second']):,.0f}",
                "" if name == first else f"{median(ratios):.2f}",
                f"{median(row['p50_ms']):.0f}",
                f"{median(row['p99_ms']):.0f}",
                f"{median(row['one_client_ms']):.2f}",
                f"{document['memory_bytes'][name] / 2**20:,.0f}",
                f"{said['largest_difference']:.1e}",
                f"{said['worst_cosine']:.4f}",
            ]
        )
    head = (
        f"{_machine(document)}, {document['threads']} threads, {document['clients']} clients on the same cores, "
        f"{len(rows[first]['per_second'])} rounds of {document['seconds']:g} s. Medians."
    )
    if document.get("best"):
        provider = document["best_provider"]
        head += f" The best is `{document['best']}`" + (f" on {provider}." if provider != "auto" else ".")
    titles = [
        "server", "requests/s", f"{first} is so many times as fast", "p50, ms", "p99, ms", "one client, ms", "MiB",
        "largest difference", "worst cosine",
    ]  # fmt: skip
    return f"{head}\n\n{_table(titles, lines)}\n"


def overload(document: Mapping[str, Any]) -> str:
    """What came of twice the capacity, and of many requests."""
    statuses, memory, many = document["statuses"], document["memory_bytes"], document["many"]
    sizes: Sequence[int] = many["memory_bytes"]
    lines = [
        ["capacity, requests/s", f"{document['capacity_per_second']:,.0f}", ""],
        [f"asked in {document['seconds']:g} s", f"{document['asked']:,}", ""],
        *([f"answered {status}", f"{count:,}", ""] for status, count in statuses.items()),
        ["not answered", f"{document['unanswered']:,}", "0"],
        ["accepted, p50", f"{document['accepted_p50_ms']:.0f} ms", ""],
        ["accepted, p99", f"{document['accepted_p99_ms']:.0f} ms", f"twice `--slo {document['slo']}`"],
        ["refused, p99", "" if document["refused_p99_ms"] is None else f"{document['refused_p99_ms']:.0f} ms", ""],
        ["memory after, against before", f"{memory[1] / memory[0] - 1:+.1%}", "5 %"],
        [f"memory after {many['requests']:,} requests more", f"{(sizes[-1] - sizes[0]) / 1e6:+.0f} MB", "20 MB"],
    ]
    return f"{_machine(document)}.\n\n{_table(['what', 'measured', 'wanted: at most'], lines)}\n"


def endings(document: Mapping[str, Any]) -> str:
    """What became of requests when the server was told to end, and of the next start when it was killed."""

    def total(rounds: Sequence[Mapping[str, int]], *names: str) -> str:
        return f"{sum(each[name] for each in rounds for name in names):,}"

    sigterm, kill = document["sigterm"], document["kill"]
    lines = [
        [what, *(total(rounds, *names) for rounds in sigterm.values()), wanted]
        for what, names, wanted in (
            ("SIGTERM: answered", ("answered",), ""),
            ("SIGTERM: refused, 503", ("refused",), ""),
            ("SIGTERM: never read by the server", ("raced_kept", "raced_new"), ""),
            ("SIGTERM: lost", ("lost",), "0"),
            ("SIGTERM: exit codes, added up", ("code",), "0"),
        )
    ]
    lines += [
        [what, *(total(rounds, name) for rounds in kill.values()), wanted]
        for what, name, wanted in (
            ("`kill -9`: answered before it", "answered", ""),
            ("`kill -9`: cut by it", "cut", ""),
            ("`kill -9`: next starts that answer on the same port", "answers", f"{document['times']}"),
            ("`kill -9`: processes and files left", "left", "0"),
        )
    ]
    head = f"{_machine(document)}, {document['times']} endings of each kind, {document['clients']} clients."
    titles = ["what", *(f"{count} worker{'s' * (count != '1')}" for count in sigterm), "wanted"]
    return f"{head}\n\n{_table(titles, lines)}\n"


def streams(document: Mapping[str, Any]) -> str:
    """Texts at once against one after another."""
    wanted = {"fp32": "2.2", "int4": "1.5"}
    lines = []
    for name, row in document["rows"].items():
        ratio = median(a / b for a, b in zip(row["together"], row["one_by_one"], strict=True))
        lines.append(
            [
                name, f"{median(row['together']):,.0f}", f"{median(row['one_by_one']):,.0f}", f"{ratio:.2f}",
                wanted.get(name, ""), f"{median(row['freed_steps']):.1f}",
            ]
        )  # fmt: skip
    titles = ["decoder", f"{document['streams']} at once, tokens/s", "one by one, tokens/s", "ratio", "wanted",
              "steps until a place is free (wanted: 1)"]  # fmt: skip
    return f"{_machine(document)}.\n\n{_table(titles, lines)}\n"


def door(document: Mapping[str, Any]) -> str:
    """What the server adds to a run."""
    bare = median(document["rounds_s"]["session"])
    lines = [
        [name, f"{document['adds_us'][name]:,.0f} µs", wanted] for name, wanted in (("binary", "200"), ("json", "350"))
    ]
    head = (
        f"{_machine(document)}, {len(document['rounds_s']['session'])} rounds; the bare run takes {bare * 1e3:.1f} ms."
    )
    return f"{head}\n\n{_table(['V2, tensors as', 'adds', 'wanted: at most, µs'], lines)}\n"


def huge_pages(document: Mapping[str, Any]) -> str:
    """What they give."""
    lines = [
        [name, f"{median(found):.3f}", f"{min(found):.2f} to {max(found):.2f}"]
        for name, found in document["ratios"].items()
    ]
    head = f"{_machine(document)}, {len(next(iter(document['ratios'].values())))} rounds, 2 threads."
    return f"{head}\n\n{_table(['a run of', 'times as fast, median', 'all rounds'], lines)}\n"
