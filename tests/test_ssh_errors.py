"""What the ssh program prints when it fails, as our errors. The texts are those of OpenSSH 9.2 where nothing else is said."""

import re

import pytest

from remoter import _ssh_errors
from remoter._address import parse
from remoter._errors import AuthError, ConnectError, KeyChangedError
from remoter._ssh_errors import explain, no_answer_from_shell, no_ssh_program, shell_ended, shell_hangs, typed

THERE = parse("ssh://there")
BEHIND = """
kex_exchange_identification: Connection closed by remote host\r
Connection closed by UNKNOWN port 65535\r
"""
CHANGED = """@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\r
Someone could be eavesdropping on you right now (man-in-the-middle attack)!\r
It is also possible that a host key has just been changed.\r
The fingerprint for the ED25519 key sent by the remote host is\r
SHA256:3ZEZzbjA279PkCHQh3IdYIt376yLz5MDivvFFhiIpJE.\r
Please contact your system administrator.\r
Add correct host key in /home/ana/.ssh/known_hosts to get rid of this message.\r
Offending ED25519 key in /home/ana/.ssh/known_hosts:7\r
"""
OF_DEBIAN = '  remove with:\r\n  ssh-keygen -f "/home/ana/.ssh/known_hosts" -R "[10.0.0.7]:2222"\r\n'
STRICT = """Host key for [10.0.0.7]:2222 has changed and you have requested strict checking.\r
Host key verification failed.\r
"""

SAID = [
    # what it printed, class, id, in the message, in the cause, in the hints
    (
        "ssh: Could not resolve hostname there: Name or service not known\r\n",
        (ConnectError, "ssh-host", "no machine is called `there`", "Name or service not known", "spelling"),
    ),
    (  # macOS
        "ssh: Could not resolve hostname there: nodename nor servname provided, or not known\r\n",
        (ConnectError, "ssh-host", "no machine is called `there`", "nodename", "ssh -G there"),
    ),
    (
        "ssh: Could not resolve hostname there: Temporary failure in name resolution\r\n",
        (ConnectError, "ssh-host", "`there` was found", "Temporary failure", "on the network"),
    ),
    (
        "ssh: connect to host 10.0.0.7 port 22: Connection refused\r\n",
        (ConnectError, "ssh-refused", "no ssh server listens on `10.0.0.7`", "port 22", "another port"),
    ),
    (
        "ssh: connect to host 10.0.0.7 port 22: Connection timed out\r\n",
        (ConnectError, "ssh-timeout", "no answer from `there`", "10.0.0.7 port 22", "VPN"),
    ),
    (  # macOS
        "ssh: connect to host 10.0.0.7 port 22: Operation timed out\r\n",
        (ConnectError, "ssh-timeout", "no answer from `there`", "10.0.0.7 port 22", "firewall"),
    ),
    (
        "Connection timed out during banner exchange\r\nConnection to 10.0.0.7 port 22 timed out\r\n",
        (ConnectError, "ssh-timeout", "no answer from `there`", "banner exchange", "firewall"),
    ),
    (
        "Timeout, server there not responding.\r\n",
        (ConnectError, "ssh-timeout", "no answer from `there`", "not responding", "firewall"),
    ),
    (
        "ssh: connect to host fe80::1%lo port 22: Network is unreachable\r\n",
        (ConnectError, "ssh-unreachable", "no way to `fe80::1%lo`", "unreachable", "VPN"),
    ),
    (
        "ssh: connect to host 10.0.0.7 port 22: No route to host\r\n",
        (ConnectError, "ssh-unreachable", "no way to `10.0.0.7`", "No route", "VPN"),
    ),
    (
        "Host key verification failed.\r\n",
        (AuthError, "ssh-key-unknown", "host key of `there` is not known", "Nobody was there", "`ssh there`"),
    ),
    (
        "No ED25519 host key is known for [10.0.0.7]:2222 and you have requested strict checking.\r\n"
        "Host key verification failed.\r\n",
        (AuthError, "ssh-key-unknown", "host key of `[10.0.0.7]:2222` is", "strict checking", "`ssh there`"),
    ),
    (
        "debug1: Host key verification failed.\r\nhello\r\n",
        (ConnectError, "ssh", "ssh to `there` failed", "hello", "`ssh -v there true`"),
    ),
    (
        "ana@10.0.0.7: Permission denied (publickey,password).\r\n",
        (AuthError, "ssh-login", "let in `ana@10.0.0.7`", "no terminal is here, so a password", "ssh-add"),
    ),
    (  # OpenSSH before 7.4
        "Permission denied (publickey).\r\n",
        (AuthError, "ssh-login", "let in `there`", "a key's passphrase could not", "ssh-add"),
    ),
    (
        "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r\n"
        "@         WARNING: UNPROTECTED PRIVATE KEY FILE!          @\r\n"
        "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r\n"
        "Permissions 0644 for '/home/ana/.ssh/id_ed25519' are too open.\r\n"
        "It is required that your private key files are NOT accessible by others.\r\n"
        "This private key will be ignored.\r\n"
        'Load key "/home/ana/.ssh/id_ed25519": bad permissions\r\n'
        "ana@10.0.0.7: Permission denied (publickey).\r\n",
        (
            AuthError,
            "ssh-login",
            "let in `ana@10.0.0.7`",
            "bad permissions",
            "chmod 600 /home/ana/.ssh/id_ed25519",
        ),
    ),
    (
        "Received disconnect from 10.0.0.7 port 22:2: Too many authentication failures\r\n"
        "Disconnected from 10.0.0.7 port 22\r\n",
        (AuthError, "ssh-login", "too many wrong keys", "Too many", "`IdentitiesOnly yes`"),
    ),
    (
        "Unable to negotiate with 10.0.0.7 port 22: no matching host key type found. Their offer: ssh-rsa,ssh-dss\r\n",
        (
            ConnectError,
            "ssh",
            "`there` have no host key type in common",
            "Their offer",
            "`HostKeyAlgorithms +ssh-rsa`",
        ),
    ),
    (
        "Unable to negotiate with 10.0.0.7 port 22: no matching cipher found. Their offer: 3des-cbc\r\n",
        (ConnectError, "ssh", "`there` have no cipher in common", "Their offer", "`Ciphers +3des-cbc`"),
    ),
    (
        "Bad owner or permissions on /home/ana/.ssh/config\r\n",
        (ConnectError, "ssh", "others could have written", "Bad owner", "`chmod 600 /home/ana/.ssh/config`"),
    ),
    (
        "/home/ana/.ssh/config: line 2: Bad configuration option: frobnicate\r\n"
        "/home/ana/.ssh/config: terminating, 1 bad configuration options\r\n",
        (ConnectError, "ssh", "cannot read its configuration", "line 2: Bad", "`ssh -G there` checks"),
    ),
    (
        "/home/ana/.ssh/config line 2: Bad port 'abc'.\r\n"
        "/home/ana/.ssh/config: terminating, 1 bad configuration options\r\n",
        (ConnectError, "ssh", "cannot read its configuration", "line 2: Bad port", "`ssh -G there` checks"),
    ),
    (
        "command-line: line 0: Bad configuration option: streamlocalbindmask\r\n",
        (ConnectError, "ssh", "does not know an option", "streamlocalbindmask", "`ssh -V`"),
    ),
    (
        "kex_exchange_identification: Connection closed by remote host\r\n"
        "Connection closed by 10.0.0.7 port 22\r\n",
        (
            ConnectError,
            "ssh",
            "`there` closed the connection before",
            "kex_exchange_identification",
            "MaxStartups",
        ),
    ),
    (
        "kex_exchange_identification: read: Connection reset by peer\r\nConnection reset by 10.0.0.7 port 22\r\n",
        (ConnectError, "ssh", "`there` closed the connection before", "reset by peer", "fail2ban"),
    ),
    (  # sshd with PAM
        "Your account has expired; please contact your system administrator.\n"
        "Connection closed by 10.0.0.7 port 22\r\n",
        (AuthError, "ssh-login", "your account on `there` is closed", "has expired", "`ssh there`"),
    ),
    (  # sshd with PAM
        "You are required to change your password immediately (password expired).\n"
        "WARNING: Your password has expired.\nPassword change required but no TTY available.\n",
        (AuthError, "ssh-login", "your account on `there` is closed", "no TTY", "`ssh there`"),
    ),
    (
        "System is booting up. Unprivileged users are not permitted to log in yet.\n"
        "Connection closed by 10.0.0.7 port 22\r\n",
        (ConnectError, "ssh", "closed the connection", "System is booting up", "wait a minute"),
    ),
    (
        "mux_client_forward: forwarding request failed: Port forwarding failed\r\n"
        "muxclient: master forward request failed\r\n",
        (
            ConnectError,
            "ssh-forward",
            "forwards no connection to `there`",
            "Port forwarding failed",
            "AllowStream",
        ),
    ),
    (
        "channel 2: open failed: administratively prohibited: open failed\r\n",
        (ConnectError, "ssh-forward", "forwards no connection to `there`", "prohibited", "AllowStream"),
    ),
    (  # so it says of sockets, forbidden or not there
        "channel 2: open failed: connect failed: open failed\r\n",
        (ConnectError, "ssh-forward", "forwards no connection to `there`", "connect failed", "AllowStream"),
    ),
    (
        'unix_listener: path "/tmp/aaaaaaa.GqdiUEd6myZaj0Hd" too long for Unix domain socket\r\n',
        (ConnectError, "ssh", "path of ssh's socket is too long", "/tmp/aaaaaaa", "REMOTER_RUNTIME_DIR"),
    ),
    (
        "mux_client_request_session: session request failed: Session open refused by peer\r\n",
        (ConnectError, "ssh-shell", "`there` started no shell", "refused by peer", "MaxSessions"),
    ),
    (
        "exec request failed on channel 0\r\n",
        (ConnectError, "ssh-shell", "`there` started no shell", "exec request", "processes"),
    ),
    (
        "Connection to 10.0.0.7 closed by remote host.\r\n",
        (ConnectError, "ssh", "connection to `there` broke", "closed by remote host", "`ssh there true`"),
    ),
    (
        "client_loop: send disconnect: Broken pipe\r\n",
        (ConnectError, "ssh", "connection to `there` broke", "Broken pipe", "`ssh there true`"),
    ),
    (
        "Warning: Permanently added '10.0.0.7' (ED25519) to the list of known hosts.\r\n"
        "/home/ana/.bashrc: line 3: module: command not found\nsomething \x1b[2J new\u202e\r\n"
        "** WARNING: connection is not using a post-quantum key exchange algorithm.\r\n",
        (ConnectError, "ssh", "ssh to `there` failed", r"something \x1b[2J new\u202e", "`ssh -v there true`"),
    ),
    (
        "",
        (
            ConnectError,
            "ssh",
            "ssh to `there` failed",
            "exit code 255, and it said nothing",
            "`ssh -v there true`",
        ),
    ),
]

ON_THE_WAY = [
    (
        "ssh: Could not resolve hostname gate: Name or service not known\r" + BEHIND,
        ("ssh-host", "no machine is called `gate` (the jump host before `there`)"),
    ),
    (
        "ssh: connect to host 10.0.0.1 port 22: Connection refused\r" + BEHIND,
        ("ssh-refused", "no ssh server listens on `10.0.0.1` (the jump host before `there`)"),
    ),
    (
        "channel 0: open failed: connect failed: Connection refused\r\nstdio forwarding failed\r" + BEHIND,
        ("ssh-refused", "the jump host `gate` cannot reach `there`"),
    ),
    (
        "channel 0: open failed: connect failed: Name or service not known\r\nstdio forwarding failed\r"
        + BEHIND,
        ("ssh-host", "the jump host `gate` cannot reach `there`"),
    ),
    (
        "channel 0: open failed: administratively prohibited: open failed\r\nstdio forwarding failed\r"
        + BEHIND,
        ("ssh-forward", "the jump host `gate` lets nobody through to `there`"),
    ),
    (
        "Host key verification failed.\r" + BEHIND,
        ("ssh-key-unknown", "the host key of the jump host `gate` before `there` is not known here"),
    ),
    (
        "ana@10.0.0.1: Permission denied (publickey).\r" + BEHIND,
        ("ssh-login", "the ssh server does not let in `ana@10.0.0.1`, on the jump host `gate`"),
    ),
    (
        "/bin/bash: line 1: exec: nc: not found" + BEHIND,
        ("ssh", "the way to `there` failed, through its ProxyJump or ProxyCommand"),
    ),
]


@pytest.mark.parametrize(("said", "expected"), SAID, ids=[expected[2][:40] for _, expected in SAID])
def test_what_ssh_says_is_explained(said, expected):
    error = explain(said, 255, THERE, may_ask=False)
    kind, id, message, cause, hint = expected
    assert type(error) is kind
    assert error.id == id
    assert message in error.message
    assert cause in error.cause
    assert hint in "\n".join(error.hints)
    assert re.fullmatch(r"[a-z`{][^\n]*[^.\n]", error.message)
    assert str(error).replace("\n", "").isprintable()


@pytest.mark.parametrize(("said", "expected"), ON_THE_WAY, ids=[each[1][1][:40] for each in ON_THE_WAY])
def test_the_hop_that_fails_is_named(said, expected):
    error = explain(said, 255, THERE, may_ask=False, jump="gate")
    assert (error.id, error.message) == expected
    assert "UNKNOWN" not in str(error)
    assert "gate" not in explain(said.replace(" gate:", " x:"), 255, THERE, may_ask=False).message


@pytest.mark.parametrize("said", [CHANGED + STRICT, CHANGED + OF_DEBIAN + STRICT, CHANGED + OF_DEBIAN])
def test_a_changed_host_key_has_its_own_error_and_two_ways_out(said):
    error = explain(said + "ana@10.0.0.7: Permission denied (publickey).\r\n", 255, THERE, may_ask=True)
    assert type(error) is KeyChangedError
    assert error.id == "key-changed"
    assert "`[10.0.0.7]:2222`" in error.message
    assert "/home/ana/.ssh/known_hosts:7" in error.cause
    assert "SHA256:3ZEZzbjA279PkCHQh3IdYIt376yLz5MDivvFFhiIpJE" in error.cause
    assert (
        "`ssh-keygen -f /home/ana/.ssh/known_hosts -R '[10.0.0.7]:2222'`, and `ssh there` once"
        in error.hints[0]
    )
    assert "type no password" in error.hints[1]


def test_who_could_be_asked_is_not_sent_to_a_terminal():
    said = "Permission denied, please try again.\r\nana@10.0.0.7: Permission denied (publickey,password).\r\n"
    error = explain(said, 255, parse("ssh://there:2222"), may_ask=True)
    assert error.id == "ssh-login"
    assert "terminal" not in str(error)
    assert error.hints == (
        "another user there? `ssh://USER@there`",
        "`ssh -v -p 2222 there` shows what was tried",
    )
    error = explain("Host key verification failed.\n", 255, THERE, may_ask=True)
    assert error.cause == "Host key verification failed."


def test_an_ssh_that_was_killed_says_so():
    error = explain(
        "Warning: Permanently added 'x' (RSA) to the list of known hosts.\n", -9, THERE, may_ask=True
    )
    assert (error.message, error.cause) == ("the ssh program was killed", "SIGKILL")
    assert explain("hello\n", -9, THERE, may_ask=True).cause == "SIGKILL; before that it said: hello"


def test_what_the_shell_there_prints_is_not_taken_for_ssh():
    said = "cat: /x: Permission denied\nbash: line 1: foo: command not found\nssh_config line 3: x\n"
    assert explain(said, 255, THERE, may_ask=True).message == "ssh to `there` failed"


def test_the_login_shell_is_named_when_it_is_at_fault():
    for error in [
        shell_hangs(THERE, b"Welcome\r\nPick a project: ", 10.0),
        shell_ended(THERE, b"Welcome\r\nPick a project: ", 1),
        no_answer_from_shell(THERE, b"Welcome\r\nPick a project: ", 10.0),
    ]:
        assert error.id == "ssh-shell"
        assert "`there`" in error.message
        assert error.cause.endswith("Pick a project: ")
    assert "exit code 1, and nothing printed" in shell_ended(THERE, b"\r\n", 1).cause
    assert "SIGKILL" in shell_ended(THERE, b"", -9).cause
    assert "`ssh there true`" in shell_hangs(THERE, b"", 10.0).hints[0]
    assert r"\x1b[2J" in shell_ended(THERE, b"\x1b[2J\xff", None).cause
    closed = shell_ended(THERE, b"This account is currently not available.\n", 1)
    assert closed.id == "ssh-login"


def test_times_are_told_as_a_person_reads_them():
    seconds = [0.0004, 0.0123, 0.0996, 0.4123, 0.9949, 0.9999, 1.26, 9.99996, 12.3, 61.7]
    shown = ["0.4 ms", "12 ms", "100 ms", "410 ms", "990 ms", "1 s", "1.3 s", "10 s", "12 s", "62 s"]
    assert [_ssh_errors.lasted(each) for each in seconds] == shown
    assert no_answer_from_shell(THERE, b"", 9.99996).cause == "nothing for 10 s, and nothing printed"


def test_there_may_be_no_ssh_at_all(monkeypatch):
    assert "apt install openssh-client" in no_ssh_program().hints[0]
    assert "REMOTER_SSH" in no_ssh_program("plink").hints[0]
    assert no_ssh_program("plink").id == "ssh-missing"
    monkeypatch.setenv("REMOTER_SSH", "ssh -F /x")
    assert typed(parse("ssh://ana@there:2222"), "true") == "ssh -F /x -p 2222 ana@there true"


def test_long_lines_are_cut():
    error = explain("x" * 5000, 255, THERE, may_ask=False)
    assert len(error.cause) == _ssh_errors.LONGEST_LINE
