"""The smallest model that a provider can be tried with."""

from __future__ import annotations

import base64

__all__ = ["TINY"]

#: y = Relu(x) of one float, opset 13, as ONNX.
TINY = base64.b64decode("CAgSADozCgwKAXgSAXkiBFJlbHUSAWdaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAN")
