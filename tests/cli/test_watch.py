"""The verb in a process of its own: it prints its address, serves, and ends with Ctrl-C."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request

from mcit.cli.main import main


def test_it_prints_its_address_and_ends_with_an_interrupt(three):
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
        "from mcit.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "watch", str(three.root), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = json.loads(process.stdout.readline())["url"]
        request = urllib.request.Request(url, headers={"Host": "elsewhere.example"})
        try:
            urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            assert error.code == 403
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["watch", str(tmp_path / "none")]) == 5
    assert "no such folder" in capsys.readouterr().err
