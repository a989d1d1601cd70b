"""Check a certificate of ``mcit forget`` with nothing but numpy and safetensors: fit every head once more and compare.

python scripts/verify_certificate.py RUN RUN/certificates/0001

Features of the rows that are left come from the certificate, weights and lists of learned rows from the run itself. Exit code
0: every head has the weights of ridge regression on the rows that are left, and no forgotten row is on a list. After a later
request that one's certificate proves the weights; of an earlier one it is checked that its rows are on no list.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def main(run, certificate):
    about = json.loads((certificate / "certificate.json").read_text())
    features = load_file(str(certificate / "features.safetensors"))
    forgotten, bad = {row["key"] for row in about["rows"]}, 0
    mine = certificate.resolve()
    requests = [p.parent.name for p in mine.parent.glob("*/certificate.json") if p.parent.name.isdigit()]
    newest = max(requests, key=int)
    superseded = int(newest) > int(mine.name)
    if superseded:
        print(f"superseded by {newest}: verify that one for the weights; here it is checked that no row came back")
    for entry in about["heads"]:
        home = run / "stages" / entry["stage"] / entry["home"]
        state = json.loads((home / "state.json").read_text())["state"]["head"]
        listed = [label for label in state["classes"] if forgotten & set(state["rows"][label])]
        if superseded:
            bad += bool(listed)
            print(f"{home}: forgotten rows listed: {len(listed)}: {'WRONG' if listed else 'ok'}")
            continue
        weight = load_file(str(home / "tensors.safetensors"))["weight|head"]
        gram, cross = np.zeros((len(weight), len(weight))), np.zeros_like(weight)
        for k, label in enumerate(state["classes"]):
            if not state["rows"][label]:
                continue
            source = "base" if entry["home"] == "router" else f"{entry['stage']}/{entry['home']}"
            x = features[f"{source}|{label}"]
            if len(x) != len(state["rows"][label]):
                bad += 1
                print(f"{home}: the certificate has {len(x)} rows of {label}, the head {len(state['rows'][label])}")
            gram, cross[:, k] = gram + x.T @ x, x.sum(0)
        again = np.linalg.solve(gram + about["gamma"][f"{entry['stage']}/{entry['home']}"] * np.eye(len(gram)), cross)
        apart = float(np.abs(again - weight).max())
        good = apart <= about["limit"] and not listed
        bad += not good
        print(f"{home}: difference {apart:.3g}, forgotten rows listed: {len(listed)}: {'ok' if good else 'WRONG'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
