"""Rules and processes as hypothesis makes them: few names, so that they meet."""

from __future__ import annotations

from hypothesis import strategies as st

from spandial.abi import Mode
from spandial.labels import Labels
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector

__all__ = ["books", "labels", "services"]

services = st.sampled_from(["shop", "bank", "shop-2"])
_envs, _versions = st.sampled_from(["", "gray", "stable"]), st.sampled_from(["", "1", "2"])
_others = st.lists(st.sampled_from([("team", "pay"), ("team", "core"), ("zone", "a")]), max_size=2, unique=True)

labels = st.builds(Labels, services, _versions, _envs, st.just(""), _others.map(lambda pairs: tuple(sorted(pairs))))

_OPERATIONS = ["GET /pay", "POST /pay", "/pay", "GET /p*", "/pkg.Shop/Buy", "/pkg.Shop/*", "report", "r*", "*", "/[ab]"]

_selectors = st.builds(
    Selector,
    service=st.none() | st.sampled_from(["shop", "bank", "shop*", "[sb]*", "*", "?hop"]),
    version=st.none() | st.sampled_from(["1", "2"]),
    env=st.none() | st.sampled_from(["gray", "g*"]),
    protocol=st.none() | st.sampled_from(["internal", "http", "grpc", "db"]),
    operation=st.none() | st.sampled_from(_OPERATIONS),
    labels=st.sampled_from([(), (("team", "pay"),)]),
)
_modes = st.sampled_from(Mode)
_rates = st.one_of(st.floats(0, 100), st.sampled_from([0.0, 0.1, 7.0, 100.0]))
_targets = st.floats(0.001, 1e12)

_rules = st.one_of(
    st.builds(Rule, _selectors, _rates, _modes),
    st.builds(lambda selector, target: Rule(selector, None, target=target), _selectors, _targets),
)
books = st.lists(_rules, max_size=12).map(lambda rules: RuleBook().change(rules))
