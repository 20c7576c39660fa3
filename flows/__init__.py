import os
import sys

from changepair.tasks.common.stopping import defer_ctrl_c

if __name__ == "flows":  # a second copy of each module would have classes that are not those of the first
    raise ImportError("import changepair.flows, not flows")

for _name, _value in {  # nothing that is imported from here on reports to anybody, unless the environment says otherwise
    "DO_NOT_TRACK": "1",  # Prefect's SDK, which reports its import; huggingface_hub; DVC
    "DVC_NO_ANALYTICS": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime, whose import writes an id of the machine; disable_telemetry_events() comes too late
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(_name, _value)

if sys.argv[:1] == ["-m"]:  # Python is about to run a module of this package: Ctrl-C waits until there is somebody to hear it
    defer_ctrl_c()
