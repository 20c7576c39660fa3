import os
import sys

from changepair.tasks.common.stopping import defer_ctrl_c

if __name__ == "flows":  # under two names, each class would exist twice
    raise ImportError("import changepair.flows, not flows")

for _name, _value in {  # no library sends telemetry, unless the environment allows it
    "DO_NOT_TRACK": "1",  # Prefect's SDK, which reports its import; huggingface_hub; DVC
    "DVC_NO_ANALYTICS": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime writes a machine id on import; disable_telemetry_events() is too late
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(_name, _value)

if sys.argv[:1] == ["-m"]:  # Python is about to run a module of this package: delay Ctrl-C until a handler is set
    defer_ctrl_c()
    if "CHANGEPAIR_FORK_SERVER" in os.environ:
        from changepair.flows.running.fork_client import hand_over

        hand_over()
