"""Tiny homes to report on: sources with rows of known uncertainty, and selections made of them."""

from __future__ import annotations

import numpy as np

from builders import make_rows
from cxu import files, store, table
from cxu.anatomy import N_NODES
from cxu.criteria import Criteria
from cxu.labels import IdList, open_labels, parse_condition
from cxu.report.build import report_table
from cxu.report.sensitivity import plan_sensitivity
from cxu.selection import filter_tables
from cxu.store import Home, Part, SourceFile, SourceListing
from cxu.thresholds import Thresholds, parse_max_radius90, parse_max_std


def rows_of(source, ids, px, **columns):
    """Return rows whose nodes are all as uncertain as ``px`` says, or as [n, 120] says."""
    sigma = np.asarray(px, np.float32)
    sigma = np.repeat(sigma[:, None], N_NODES, axis=1) if sigma.ndim == 1 else sigma
    of_frame = table.sigma_columns(np.repeat(sigma[..., None], 2, axis=2))
    own = {"source": source, "image_id": list(ids), "n_samples": 50, "rca_mean": np.full(len(ids), 0.8)}
    own["patient_id"] = [Desk.rule(source).patient_id(image_id) for image_id in ids]
    return make_rows(len(ids), **{**own, **of_frame, **columns})


class Desk:
    """A home, and what is done in it."""

    def __init__(self, root):
        self.home = Home(root)

    @staticmethod
    def rule(source):
        from cxu.catalog import source_or_custom

        return source_or_custom(source)

    def put(self, *shards, frame="model", partial=None, malformed=0):
        """Publish rows as a source, a part for each table."""
        source = shards[0]["source"][0].as_py()
        staged, parts = self.home.staging(source, frame, "test"), []
        for index, rows in enumerate(shards):
            path = staged / f"part-{index:04d}.parquet"
            store.write_table(rows, path)
            parts.append(Part(path.name, len(rows), files.sha256_of(path)))
        rows = sum(map(len, shards))
        listed = (SourceFile(f"{source}.csv", "0" * 64, rows, malformed, parts=tuple(parts)),)
        self.home.publish(SourceListing(source, frame, listed, partial), staged)
        return self.home.open_source(source, frame)

    def select(
        self, inputs, name="latest", *, out=None, where=(), ids=None, labels=(), sources=(), frame=None, **asked
    ):
        """Filter tables, by name, as ``cxu filter`` does; thresholds as they are typed."""
        tables = [self.home.open(one) if isinstance(one, str) else one for one in inputs]
        if "max_std" in asked:
            asked["max_std"] = parse_max_std(asked["max_std"])
        if "max_radius90" in asked:
            asked["max_radius90"] = parse_max_radius90(asked["max_radius90"])
        known = sorted({source for one in tables for source in one.read(["source"])["source"].to_pylist()})
        criteria = Criteria(
            Thresholds(**asked),
            sources=tuple(sources),
            frame=frame,
            ids=None if ids is None else IdList(ids),
            labels=tuple(open_labels(str(text), known) for text in labels),
            where=tuple(map(parse_condition, where)),
        )
        path = self.home.selection_path(name) if out is None else out
        filter_tables(tables, criteria, path)
        return self.home.open(name) if out is None else store.open_table(path)

    def report(self, name=None, *, sensitivity=False, workers=1):
        """Report on a table, by name or as it is."""
        stored = name if isinstance(name, store.StoredTable) else self.home.open(name)
        plan = plan_sensitivity(stored, self.home) if sensitivity else None
        return report_table(stored, self.home, plan=plan, workers=workers)


def rewritten(stored, facts, rows=None):
    """Write a stored selection's rows anew with other facts, and open it."""
    content = stored.read() if rows is None else rows
    store.write_table(table.with_facts(content, facts), stored.paths[0])
    return store.open_table(stored.paths[0], name=stored.name)
