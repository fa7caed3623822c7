"""The clear text of TLS connections is counted and decided once, whatever the sockets carry."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spandial.abi import EntryKind
from spandial_agent.kernel.capture import Capture
from spandial_agent.kernel.tls import FUNCTIONS
from tests.kernel.conftest import Attached, Watched
