"""The R worker: runs the user's code in R's own main loop; a process of its own on the server's machine.

This program opens R's shared library with `ctypes` and lets R run its real main loop, so that
whatever R does at its console it does here: auto-print, warnings, browsers, `.Last.value`. Nothing
is compiled, and nothing but the standard library is needed, so any Python from 3.8 on will do.
Started as `R CMD PYTHON r_worker.py RUNDIR WORKERID ENGINE`. It is one file, longer than others, since
its classes share one thread and one set of rules, which are these:

One thread. The GIL is held while R runs (`PyDLL`), and there are no other threads: packages that
use Python themselves (reticulate) would end the process otherwise.

No jump over Python. R leaves C code by `longjmp`, and that must never cross a frame of ours. So a
callback calls R only through `R_tryEvalSilent`, and asks for nothing that could raise an error.

Where R calls us:

    ReadConsole   at its top level it wants the next expression (`Worker.at_top`), elsewhere a line
                  for `readline()`, a browser and the like (`Worker.ask`)
    WriteConsole  every piece of text, mostly less than a line (`Console`)
    ResetConsole  just before a jump to the top level: an error, an interrupt, an abort
    PolledEvents  wherever R checks for interrupts, about every 1000 evaluations, and in `Sys.sleep`:
                  the frames of the server are read there, and its questions answered (`Worker.poll`)

How an expression is run. The code is parsed as a whole. Each top-level expression becomes a promise,
bound to a hidden name, and that name is what R's console reads. To force a promise makes no frame
and leaves visibility alone, so all is as if the expression had been typed; but it was parsed once,
however long its lines are. And one word of memory tells whether the promise has been forced:
what is printed before was printed by the code, what is printed after is the value itself.

What is an error. R writes the message as any text, and only later resets the console; `try()`
writes the same and goes on. A message that equals R's error buffer is held back until something
else happens: a reset makes it an error, anything else ordinary text (`Console.held`).
"""

from __future__ import annotations

import collections
import ctypes
import hashlib
import json
import os
import re
import select
import signal
import struct
import sys

import python_worker
from python_worker import Connection, Control, Streams, Waker, clean, clock, encode, high, pause, stopwatch

HERE = os.path.dirname(os.path.abspath(__file__))
# What R's console reads instead of an expression: a name that no code of the user's has.
NAME = b".remoter_" + os.urandom(6).hex().encode()
POLL_TIME = 0.005  # seconds between two looks at the sockets while R runs
PUMP_TIME = 50  # milliseconds between two turns of R's event loop, where something needs that
PUMP = ".Internal(Sys.sleep(0.002))"
LONGEST_RESULT = 65536  # bytes of a value's text in a `result` frame; all of it is on stdout
LONGEST_HELD = 65536
SWALLOWED = 1 << 63  # in an interrupt's number: another program got the signal in R's place
MOST_HELD_FRAMES = 64
LONGEST_ANSWER = 2.0  # seconds; what the user has bound to a name may compute for ever
BRIEF = {"check"}  # questions whose answer must not be lost to an interrupt
MOST_PAGES = 64  # as many devices as R can have open
LINE_BUFFERED = 1  # C's _IOLBF; 1 on Linux and macOS
ACTIVITY = 71  # the number of our input handlers; R's own and other packages' differ

R_HALF = """local(envir = new.env(parent = baseenv()), {
    parsed <- NULL
    place <- .AutoloadEnv
    half <- NULL
    side <- function() half
    list(
        parse = function(code, filename, with_sources, has_blocks, transfer) tryCatch({
            lines <- strsplit(code, "\\n", fixed = TRUE)[[1L]]
            keep <- with_sources || (has_blocks && isTRUE(getOption("keep.source")))
            parsed <<- if (keep) parse(text = lines, keep.source = TRUE, srcfile = srcfilecopy(filename, lines))
                       else parse(text = lines, keep.source = FALSE)
            if (!is.null(transfer)) parsed <<- side()$keeping(transfer, parsed)
            if (with_sources)
                vapply(attr(parsed, "srcref"), function(s) paste(as.character(s), collapse = "\\n"), "")
            else length(parsed)
        }, error = function(e) list(conditionMessage(e))),
        loaded = function() half <<- get(".remoter", envir = place, inherits = FALSE),
        bind = function(name, number) {
            if (!"Autoloads" %in% search()) {
                attach(NULL, pos = length(search()), name = "Autoloads")
                place <<- as.environment("Autoloads")
            }
            if (!is.null(half)) assign(".remoter", half, envir = place)
            eval(call("delayedAssign", name, parsed[[number]], globalenv(), place))
            place
        },
        forget = function() parsed <<- NULL,
        answer = function(name, ...) side()[[name]](...),
        traceback = function() vapply(.traceback(), function(lines) {
            at <- attr(lines, "srcref")
            text <- paste(lines, collapse = "\\n")
            if (is.null(at)) text
            else paste0(text, " at ", basename(attr(at, "srcfile")$filename), "#", at[1L])
        }, ""),
        width = function(columns) options(width = max(10L, min(columns, 10000L))),
        sinks = function() .Internal(sink.number(TRUE)),
        has_pages = function() length(half$rendered) > 0L,
        version = function() paste(R.version$major, R.version$minor, sep = "."),
        tempdir = function() tempdir(),
        depth = function() sys.nframe() - 1L,
        error_message = function() geterrmessage(),
        are_errors_shown = function() !isFALSE(getOption("show.error.messages")),
        has_error_handler = function() !is.null(getOption("error")),
        rlang_text = function() {
            if (!isNamespaceLoaded("rlang")) return("")
            tryCatch({
                last <- getExportedValue("rlang", "last_error")()
                call <- conditionCall(last)
                paste0("Error", if (!is.null(call)) paste0(" in `", deparse(call[[1L]])[1L], "()`"), ":\n! ",
                       conditionMessage(last))
            }, error = function(e) "")
        },
        in_menu = function() {
            for (number in seq_len(sys.nframe())) if (identical(sys.function(number), utils::menu)) return(TRUE)
            FALSE
        },
        take_exit = function() {
            status <- side()$exit
            assign("exit", NULL, envir = side())
            status
        }
    )
})"""


BLOCK = re.compile(r"[{\\]|function")  # what has a source of its own: blocks and functions, `\(x)` too
COLORS = "R_CLI_NUM_COLORS"  # what R's packages look at
SIGNAL_TIME = 0.5  # seconds in which the signal of an interrupt has come after its number
SHOW_TIME = 1.0  # seconds after which a plot is shown although the run goes on


class Missing(Exception):
    """R cannot be embedded here; says why."""


# --- R's C interface ---------------------------------------------------------------------------

# What R calls of ours. `use_errno`: R's C code looks at errno after what it has evaluated, and must not find ours.
WriteConsole = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int, ctypes.c_int, use_errno=True)
ReadConsole = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, use_errno=True
)
Procedure = ctypes.CFUNCTYPE(None, use_errno=True)
Handler = ctypes.CFUNCTYPE(None, ctypes.c_void_p, use_errno=True)


class InputHandler(ctypes.Structure):
    """An entry of R's list of file descriptors that it watches."""


InputHandler._fields_ = [
    ("activity", ctypes.c_int),
    ("descriptor", ctypes.c_int),
    ("handler", ctypes.c_void_p),
    ("next", ctypes.POINTER(InputHandler)),
]

POINTER_FUNCTIONS = {
    "Rf_install": 1,
    "Rf_findVarInFrame": 2,
    "Rf_mkCharLenCE": 3,
    "Rf_ScalarString": 1,
    "Rf_ScalarInteger": 1,
    "Rf_ScalarLogical": 1,
    "Rf_lcons": 2,
    "Rf_cons": 2,
    "SETCAR": 2,
    "Rf_protect": 1,
    "R_tryEval": 3,
    "R_tryEvalSilent": 3,
    "R_ParseVector": 4,
    "VECTOR_ELT": 2,
    "STRING_ELT": 2,
    "R_CHAR": 1,
    "addInputHandler": 4,
}
INTEGER_FUNCTIONS = {"Rf_length": 1, "TYPEOF": 1, "Rf_asInteger": 1, "Rf_initialize_R": 2}
VOID_FUNCTIONS = {"Rf_unprotect": 1, "R_PreserveObject": 1, "setup_Rmainloop": 0, "run_Rmainloop": 0}
VARIABLES = [
    *("R_GlobalEnv", "R_BaseEnv", "R_NilValue", "R_UnboundValue", "R_Outputfile", "R_Consolefile"),
    *("ptr_R_ReadConsole", "ptr_R_WriteConsole", "ptr_R_WriteConsoleEx", "ptr_R_ResetConsole"),
    *("ptr_R_FlushConsole", "R_PolledEvents", "R_InputHandlers", "R_interrupts_pending"),
]
LOGICAL, INTEGER, STRING, LIST, UTF8 = 10, 13, 16, 19, 1
CONTEXT_KIND, TOP_LEVEL = 8, 0
SYMBOL_VALUE, PROMISE_VALUE = 40, 32  # where these stand in memory; `check_layout` looks whether they do


class Library:
    """R's own library: what of it is called from here, and values in and out."""

    def __init__(self, path):
        try:
            self.dll = ctypes.PyDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError as problem:
            raise Missing(str(problem)) from None
        for kinds, result in (
            (POINTER_FUNCTIONS, ctypes.c_void_p),
            (INTEGER_FUNCTIONS, ctypes.c_int),
            (VOID_FUNCTIONS, None),
        ):
            for name, count in kinds.items():
                setattr(self, name, self.function(name, result, count))
        self.Rf_mkCharLenCE.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
        for name in ("Rf_ScalarInteger", "Rf_ScalarLogical", "Rf_unprotect"):
            getattr(self, name).argtypes = [ctypes.c_int]
        for name in ("VECTOR_ELT", "STRING_ELT"):
            getattr(self, name).argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
        self.variables = {name: self.variable(name) for name in VARIABLES}
        self.pending = self.integer("R_interrupts_pending")
        self.handlers = self.variables["R_InputHandlers"]
        self.addInputHandler.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
        # What may be missing in another R: each has a way around it.
        self.suspended = self.integer("R_interrupts_suspended", optional=True)
        self.visible = self.integer("R_Visible", optional=True)
        self.wait_time = self.integer("R_wait_usec", optional=True)
        self.context = self.variable("R_GlobalContext", optional=True)
        self.error_buffer = self.function("R_curErrorBuf", ctypes.c_char_p, 0, optional=True)
        self.devices = self.function("Rf_NumDevices", ctypes.c_int, 0, optional=True)
        self.set_promise = self.function("SET_PRVALUE", None, 2, optional=True)

    def function(self, name, result, count, optional=False):
        try:
            found = getattr(self.dll, name)
        except AttributeError:
            if optional:
                return None
            raise Missing("it has no `%s`" % name) from None
        found.restype = result
        found.argtypes = [ctypes.c_void_p] * count
        return found

    def variable(self, name, kind=ctypes.c_void_p, optional=False):
        try:
            return kind.in_dll(self.dll, name)
        except ValueError:
            if optional:
                return None
            raise Missing("it has no `%s`" % name) from None

    def integer(self, name, optional=False):
        return self.variable(name, ctypes.c_int, optional)

    def hook(self, name, callback):
        self.variables[name].value = ctypes.cast(callback, ctypes.c_void_p).value if callback else None

    def begin(self, arguments):
        """Everything up to the main loop itself; R reads its profiles."""
        values = [argument.encode() for argument in arguments]
        self.arguments = (ctypes.c_char_p * (len(values) + 1))(*values, None)
        self.Rf_initialize_R(len(values), ctypes.cast(self.arguments, ctypes.c_void_p))

    # Values

    def string(self, text):
        data = text.encode("utf-8", "replace")
        return self.Rf_ScalarString(self.Rf_mkCharLenCE(data, len(data), UTF8))

    def value(self, value):
        """A plain Python value, a pointer to R's own (as `c_void_p`) as it is."""
        if isinstance(value, ctypes.c_void_p):
            return value.value
        if value is None:
            return self.variables["R_NilValue"].value
        if isinstance(value, bool):
            return self.Rf_ScalarLogical(value)
        if isinstance(value, int):
            return self.Rf_ScalarInteger(value)
        return self.string(value)

    def call(self, function, *arguments, silent=True):
        """What R's function gives; None if it failed. Its errors must be caught in R: they would run user code."""
        call = self.variables["R_NilValue"].value
        for argument in reversed(arguments):
            self.Rf_protect(call)
            call = self.Rf_cons(self.Rf_protect(self.value(argument)), call)
            self.Rf_unprotect(2)
        self.Rf_protect(call)
        call = self.Rf_protect(self.Rf_lcons(function, call))
        try:
            return self.evaluate(call, silent)
        finally:
            self.Rf_unprotect(2)

    def evaluate(self, expression, silent=True):
        failed = ctypes.c_int(0)
        evaluate = self.R_tryEvalSilent if silent else self.R_tryEval
        visible = self.visible.value if self.visible is not None else 0
        value = evaluate(expression, self.variables["R_GlobalEnv"].value, ctypes.byref(failed))
        if self.visible is not None:
            self.visible.value = visible
        return None if failed.value else value

    def parse(self, text):
        """The first expression of a text of ours, kept for ever. (A user's text could raise errors.)"""
        status = ctypes.c_int(0)
        source = self.Rf_protect(self.string(text))
        parsed = self.Rf_protect(
            self.R_ParseVector(source, -1, ctypes.byref(status), self.variables["R_NilValue"])
        )
        first = self.VECTOR_ELT(parsed, 0)
        self.R_PreserveObject(first)
        self.Rf_unprotect(2)
        return first

    def element(self, value, place):
        """One element of a list; None if it is none."""
        return self.VECTOR_ELT(value, place) if self.is_a(value, LIST) else None

    def is_a(self, value, *kinds):
        return value is not None and self.TYPEOF(value) in kinds

    def number(self, value, otherwise=0):
        """The first of a vector of integers or truths."""
        is_number = self.is_a(value, INTEGER, LOGICAL) and self.Rf_length(value)
        return self.Rf_asInteger(value) if is_number else otherwise

    def strings(self, value):
        """A character vector as a list; None if it is none."""
        if not self.is_a(value, STRING):
            return None
        return [
            ctypes.string_at(self.R_CHAR(self.STRING_ELT(value, place))).decode("utf-8", "replace")
            for place in range(self.Rf_length(value))
        ]

    def text(self, value):
        texts = self.strings(value)
        return texts[0] if texts else None

    def is_jump_to(self, top):
        """Whether a jump to the top level, made now, goes to that one: C code can put others around what
        it calls, as R does for finalizers. R's contexts are a list: each begins with the next, and its kind."""
        if self.context is None:
            return True
        context = self.context.value
        while context and ctypes.c_int.from_address(context + CONTEXT_KIND).value != TOP_LEVEL:
            context = ctypes.c_void_p.from_address(context).value
        return context is None or context == top

    def watched(self):
        """The file descriptors that R's packages want to be watched."""
        found = []
        entry = ctypes.cast(self.handlers.value, ctypes.POINTER(InputHandler))
        while entry:
            handler = entry.contents
            if handler.descriptor > 0 and handler.activity != ACTIVITY:
                found.append(handler.descriptor)
            entry = handler.next
        return found


class Half:
    """The functions of `R_HALF`, of `r_side.R`, and the promises in which expressions are run."""

    def __init__(self, library):
        self.library = library
        functions = library.evaluate(library.parse(R_HALF))
        if functions is None:
            raise Missing("its base package is not as expected")
        library.R_PreserveObject(functions)
        names = re.findall(r"^ {8}(\w+) = ", R_HALF, re.MULTILINE)
        self.functions = {name: library.VECTOR_ELT(functions, place) for place, name in enumerate(names)}
        self.symbol = library.Rf_install(NAME)
        self.traceback_symbol = library.Rf_install(b".Traceback")
        # Holds the promise, whatever the user's code does to its name.
        nothing = library.variables["R_NilValue"].value
        self.hold = library.Rf_cons(nothing, nothing)
        library.R_PreserveObject(self.hold)
        self.find = library.Rf_findVarInFrame
        self.slot = None
        self.unforced = library.variables["R_UnboundValue"].value
        self.is_known = self.check_layout()
        self.load()

    def load(self):
        """Read `r_side.R`; without it there are no answers, but code runs."""
        path = os.path.join(HERE, "r_side.R").replace("\\", "\\\\").replace('"', '\\"')
        text = 'tryCatch(sys.source("%s", envir = new.env(parent = baseenv()), keep.source = FALSE), error = function(e) conditionMessage(e))'
        self.library.evaluate(self.library.parse(text % path))
        self("loaded")

    def check_layout(self):
        """Whether a promise in memory is what we think it is: one is made, looked at, forced, looked at again."""
        self("parse", "1", "", False, False, None)
        self.look(self("bind", NAME.decode(), 1))
        before = self.slot.value
        self.library.evaluate(self.symbol)
        after = self.slot.value
        self.forget()
        constant = self.library.Rf_install(b"pi")
        value = ctypes.c_void_p.from_address(constant + SYMBOL_VALUE).value
        base = self.library.variables["R_BaseEnv"].value
        return before == self.unforced != after and value == self.find(base, constant)

    def __call__(self, name, *arguments):
        """What that function gives, or None. It is over in a moment: an interrupt waits for so long."""
        suspended = self.library.suspended
        if suspended is None:
            return self.library.call(self.functions[name], *arguments)
        before, suspended.value = suspended.value, 1
        try:
            return self.library.call(self.functions[name], *arguments)
        finally:
            suspended.value = before

    def look(self, place):
        promise = self.find(place, self.symbol)
        self.promise = promise
        self.library.SETCAR(self.hold, promise)
        self.slot = ctypes.c_void_p.from_address(promise + PROMISE_VALUE)

    def prepare(self, number):
        """Make the next expression of the parsed code the one that the console reads."""
        place = self("bind", NAME.decode(), number)
        if place is None:
            raise RuntimeError("R could not take the expression")
        if self.is_known:
            self.look(place)
        return self.slot

    def forget(self):
        """Let go of the value, so that R need not copy it when it is changed."""
        if self.slot is not None and self.library.set_promise is not None:
            self.library.set_promise(self.promise, self.library.variables["R_NilValue"].value)
        self.slot = None

    def last_traceback(self):
        """Where R's last traceback stands in memory: another one after each error."""
        if not self.is_known:
            return None
        return ctypes.c_void_p.from_address(self.traceback_symbol + SYMBOL_VALUE).value

    def answer(self, name, *arguments):
        """The JSON answer of a function in `r_side.R`. Raises RuntimeError."""
        if name in BRIEF:  # an interrupt waits
            answer = self("answer", name, *arguments)
        else:
            answer = self.library.call(self.functions["answer"], name, *arguments)
        text = self.library.text(answer)
        if text is None:
            raise RuntimeError("R did not answer")
        return json.loads(text or "{}")


# --- the console -------------------------------------------------------------------------------


class Failure:
    """One jump to the top level, and what R wrote before it."""

    def __init__(self, kind, text, printed):
        self.kind = kind  # error, interrupt, or unknown: nothing was written
        self.text = text
        self.printed = printed
        self.reported = False


class Console:
    """What R prints: to stdout or stderr, the text of a value, or an error.

    Each piece goes out as soon as R gives it, since nothing tells whether more will follow soon. Two
    kinds of pieces can wait for the next: the blank that `cat` puts between two values, and those
    of a value that R itself prints, up to the end of a line.
    """

    def __init__(self, worker, streams):
        self.worker = worker
        self.library = worker.library
        self.streams = streams
        self.pid = worker.pid
        self.outlets = [
            high(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)) for path in streams.paths
        ]
        self.out = self.outlets[1]
        self.waiting = b""
        self.slot = None
        self.unforced = None
        self.printed = bytearray()
        self.held = []
        self.flushed_error = None
        self.failure = None
        self.quiet = False
        self.is_deaf = False  # an interrupt is on its way: what the interrupted still says is not wanted
        self.crashing = False
        self.is_plain = True  # nothing is held, no failure is open, nothing is to be swallowed

    def write(self, data, size, is_error):
        """R's callback for every piece of text."""
        try:
            if is_error:
                self.write_error(data)
                return
            if not self.is_plain:
                if self.quiet:
                    return
                self.resolve()
            if self.slot is not None and self.slot.value != self.unforced:
                if len(self.printed) < LONGEST_RESULT:
                    self.printed += data
                self.waiting += data
                if data[-1:] == b"\n" or len(self.waiting) > 4096:
                    self.flush()
            elif data == b" ":
                self.waiting += data
            else:
                if self.waiting:
                    data, self.waiting = self.waiting + data, b""
                if os.write(self.out, data) != len(data):
                    self.force(1, data, 0)
        except BlockingIOError:
            self.force(1, data, 0)
        except BaseException as problem:
            self.worker.astray(problem)

    def flush(self):
        data, self.waiting = self.waiting, b""
        if data:
            self.put(1, data)

    def put(self, fd, data):
        try:
            written = os.write(self.outlets[fd], data)
        except BlockingIOError:
            written = 0
        if written < len(data):
            self.force(fd, data, written)

    def force(self, fd, data, written):
        """The server does not read as fast as R prints: wait for it, but not through an interrupt."""
        poll = select.poll()
        poll.register(self.outlets[fd], select.POLLOUT)
        while written < len(data):
            if not poll.poll(50) and os.getpid() == self.pid:
                self.worker.read()
                if self.library.pending.value and self.worker.run is not None:
                    return
            try:
                written += os.write(self.outlets[fd], data[written : written + 4096])
            except BlockingIOError:
                pass

    def write_error(self, data):
        if self.quiet:
            return
        if self.is_deaf:
            self.is_deaf = bool(self.library.pending.value)
            if self.is_deaf:
                return
        if self.failure is not None:
            self.resolve()
        self.flush()
        if self.worker.run is None or self.worker.pumping or self.crashing or os.getpid() != self.pid:
            self.crashing = self.crashing or data.startswith(b"\n *** caught ")
            self.put_error(data)
            return
        is_message = self.library.error_buffer is not None and data == self.library.error_buffer()
        if is_message or (data == b"\n" and not self.held):
            self.release()
            self.held.append(data)
            self.is_plain = False
        elif data.startswith(b"\n *** caught "):
            self.crashing = True
            self.release()
            self.put_error(data)
        elif self.held:
            self.held.append(data)
            if sum(map(len, self.held)) > LONGEST_HELD:
                self.release()
        else:
            self.put_error(data)

    def put_error(self, data):
        """In order with what is printed to stdout: the server has read that before, and this after."""
        if os.getpid() != self.pid:
            self.put(2, data)
            return
        self.streams.wait_until_read(1)
        self.put(2, data)
        self.streams.wait_until_read(2)

    def release(self):
        """What was held back was no error, or at least not the end of the expression."""
        held, self.held = self.held, []
        if held and os.getpid() == self.pid:  # in a forked child it is its parent's
            self.flushed_error = b"".join(held)
            self.put_error(self.flushed_error)
        self.is_plain = self.failure is None and not self.quiet

    def resolve(self):
        """Something else happens now: an error that was on its way is one, what was held back is none."""
        failure = self.failure
        if failure is not None and failure.kind == "error" and os.getpid() == self.pid:
            self.worker.report(failure, in_the_middle=True)
        if self.held:
            self.release()

    def reset(self):
        """R's callback: it is about to jump to the top level, or to a browser that is nearer."""
        try:
            if self.quiet or self.worker.run is None or self.worker.pumping or os.getpid() != self.pid:
                return
            self.flush()
            if not self.worker.library.is_jump_to(self.worker.top):
                self.survive()
                return
            held, self.held = self.held, []
            if held and held[0] == b"\n":
                self.failure = Failure("interrupt", b"", False)
                if held[1:]:
                    self.put_error(b"".join(held[1:]))
            elif held:
                self.failure = Failure("error", b"".join(held), False)
            else:
                self.failure = Failure("unknown", b"", self.flushed_error is not None)
            self.is_plain = False
        except BaseException as problem:
            self.worker.astray(problem)

    def survive(self):
        """What failed was a finalizer, a task callback or the like: R says so, and the expression goes on."""
        if self.held and self.held[0] == b"\n" and self.worker.is_interrupted():
            self.held.clear()
            self.library.pending.value = 1  # who interrupted the run meant more than that
        self.release()

    def settle_browser(self):
        """R asks in the middle of an expression: an error before this was one of a browser's command."""
        self.flush()
        failure, self.failure = self.failure, None
        if failure is not None and failure.text and not failure.printed and not failure.reported:
            self.put_error(failure.text)
        self.release()

    def take_failure(self):
        failure, self.failure = self.failure, None
        self.is_plain = not self.held and not self.quiet
        return failure

    def begin_expression(self, slot):
        self.slot, self.unforced = slot, self.worker.half.unforced
        self.printed.clear()
        self.flushed_error = None

    def end_expression(self):
        """The text that R printed for the value, if it printed one."""
        self.flush()
        self.release()
        self.slot = None
        text = python_worker.ANSI.sub("", self.printed[:LONGEST_RESULT].decode("utf-8", "ignore"))
        self.printed.clear()
        return text[:-1] if text.endswith("\n") else text

    def swallow(self, quiet):
        """While a question is answered nothing is printed."""
        before, self.quiet = self.quiet, quiet
        self.is_plain = not quiet and self.failure is None and not self.held
        return before


# --- the server's questions --------------------------------------------------------------------

ANSWERS = {
    "complete": ("complete", ("code", "cursor")),
    "is_complete": ("check", ("code",)),
    "variables": ("variables", ()),
    "inspect": ("inspect", ("code", "cursor")),
    "pack": ("pack", ("path", "name", "transfer")),
    "bind": ("bind", ("path", "name", "overwrite")),
    "find": ("find", ("name",)),
    "remove": ("remove", ("name",)),
    "drop": ("drop", ("transfer",)),
}


class Side:
    """The connection for questions: read wherever frames are, answered where R may be called."""

    def __init__(self, worker, path):
        self.worker = worker
        self.path = path
        self.waker = Waker()
        self.connection = None
        self.questions = collections.deque()
        self.next_try = 0.0
        self.delay = python_worker.SOON
        self.soon_until = clock() + 1.0

    def connect(self):
        worker = self.worker
        hello = {"type": "hello", "role": "side", "worker": worker.id, "pid": worker.pid, "lang": "r"}
        hello.update(version=worker.version, python=worker.program, runner="embed", tempdir=worker.tempdir)
        hello.update(pending=ctypes.addressof(worker.library.pending))
        hello.update(cwd=python_worker.current_directory(), busy=worker.run["number"] if worker.run else None)
        self.connection = Connection(self.path, hello)

    def keep_connected(self):
        """Both connections, if the server is there; looked for again after a while."""
        control = self.worker.control
        if self.connection is not None and control.connection is not None:
            return
        now = clock()
        if now < self.next_try:
            return
        try:
            if self.connection is None:
                self.connect()
                if control.connection is not None and control.connection.is_dead():
                    control.lose(control.connection)
            if control.connection is None:
                control.connect()
            self.delay = python_worker.TICK
        except OSError:
            if now > self.soon_until:
                self.delay = min(1.0, self.delay * 1.5)
            self.next_try = now + self.delay
            if not self.worker.is_wanted():
                self.worker.stop("the server is gone")

    def lose(self):
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def read(self):
        if self.connection is None:
            return
        try:
            self.connection.read()
        except EOFError:
            self.lose()
            return
        while self.connection.frames:
            frame = self.connection.frames.popleft()
            if frame.get("type") == "received":
                self.worker.control.acknowledge(frame["received"])
            elif frame.get("type") == "query":
                self.questions.append((self.connection, frame))

    def answer_all(self):
        while self.questions:
            connection, query = self.questions.popleft()
            if connection is not self.connection:  # who asked is gone
                continue
            reply = {"type": "reply", "id": query["id"]}
            try:
                reply["data"] = self.answer(query)
            except Exception as problem:
                if self.worker.library.pending.value and not query.get("again"):
                    query["again"] = True  # the run was interrupted, not the question
                    self.questions.appendleft((connection, query))
                    return
                reply["error"] = clean("%s: %s" % (type(problem).__name__, problem))
            try:
                connection.socket.sendall(encode(reply))
            except OSError:
                self.lose()

    def answer(self, query):
        what = query["what"]
        if what == "info":
            return {"cwd": python_worker.current_directory(), "pid": self.worker.pid, "runner": "embed"}
        if what not in ANSWERS:
            raise ValueError("unknown question `%s`" % what)
        name, keys = ANSWERS[what]
        arguments = [query.get(key) for key in keys]
        if "cursor" in keys and arguments[-1] is None:
            arguments[-1] = len(arguments[0] or "")
        limit = LONGEST_ANSWER if what in ("complete", "inspect", "variables") else None
        return as_answer(query, self.worker.ask_r(name, *arguments, limit=limit))


OBJECTS = {"pack", "bind", "find", "remove", "drop"}


def as_answer(query, data):
    """What R says, as the server expects it: what cannot be done is a refusal, of which it makes an error."""
    name = query.get("name")
    if "missing" in data and not name:
        return refuse("TransferError", "the value is no longer kept", hints=["ask for it again"])
    if "missing" in data:
        near = " and ".join("`%s`" % other for other in data.get("near") or [])
        hints = ["there is " + near] if near else []
        return refuse("NameNotFoundError", "the session has no object `%s`" % name, hints=hints)
    if "exists" in data:
        return refuse(
            "TransferError",
            "the session has an object `%s` already" % name,
            cause="it is `%s`" % data["exists"],
            hints=["give another name, or allow it with `overwrite=True`"],
            kind="exists",
        )
    if "error" in data and query["what"] in OBJECTS:
        return refuse("TransferError", "the session cannot do that", cause=data["error"])
    if "error" in data:
        raise RuntimeError(data["error"])
    return data


def refuse(error, message, cause=None, hints=(), kind=""):
    refusal = {"error": error, "message": message, "cause": cause, "hints": list(hints), "kind": kind}
    return {"refused": refusal}


# --- the worker --------------------------------------------------------------------------------


class Interrupts:
    """The numbers of the runs that the server has interrupted. The signal itself is R's own affair."""

    def __init__(self, path):
        self.path = path
        self.numbers = set()
        self.open()

    def open(self):
        self.fifo = high(os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self):
        return self.fifo

    def read(self):
        try:
            data = os.read(self.fifo, 1 << 16)
        except BlockingIOError:
            return
        except OSError:  # user code has closed it
            self.open()
            return
        self.numbers.update(number for (number,) in struct.iter_unpack("!Q", data[: len(data) // 8 * 8]))

    def take(self, number):
        """Whether that run is to be interrupted; asked once."""
        meant = self.numbers & {number, number | SWALLOWED}
        self.numbers -= meant
        return bool(meant)

    def forget(self, number):
        """Runs up to that one are over."""
        self.numbers = {n for n in self.numbers if n & ~SWALLOWED > number}

    def __enter__(self):
        """No exception ever comes out of the blue here: what needs protection elsewhere needs none."""

    def __exit__(self, *exception):
        pass


class Worker:
    """Takes runs from the server one after the other and tells what became of them."""

    def __init__(self, library, rundir, worker_id):
        self.library = library
        self.rundir = rundir
        self.id = worker_id
        self.pid = os.getpid()
        self.program = os.path.join(os.environ.get("R_HOME", ""), "bin", "R")
        self.version = self.tempdir = ""
        self.half = None
        self.top = None
        self.run = None
        self.last = 0
        self.queue = collections.deque()
        self.answers = {}
        self.asks = 0
        self.typed = b""
        self.stopping = None
        self.has_given_up = False  # a browser of this run was left because nobody answers
        self.pumping = self.inside = self.is_late = False
        self.answer_until = None  # when R must have answered what it is being asked
        self.pump_after = self.next_poll = 0.0
        self.terminal = 0, False
        self.environment = {}
        self.entries = None
        self.streams = Streams(self, rundir)
        self.streams.renew_fds()
        self.streams.find_c_stdout()
        if self.streams.c_stdout:  # what C code prints comes line by line, too
            self.streams.libc.setvbuf(self.streams.c_stdout, None, LINE_BUFFERED, ctypes.c_size_t(0))
        self.interrupts = Interrupts(os.path.join(rundir, "interrupt"))
        path = os.path.join(rundir, "worker.sock")
        self.control = Control(self, path)
        self.side = Side(self, path)
        self.waker = self.side.waker
        self.console = Console(self, self.streams)
        self.pictures = Pictures(self)
        self.is_up = False

    # Life

    def start(self, arguments):
        """Hand the process over to R, which comes back only through the callbacks."""
        library, console = self.library, self.console
        self.callbacks = {
            "ptr_R_ReadConsole": ReadConsole(self.read_console),
            "ptr_R_WriteConsoleEx": WriteConsole(console.write),
            "ptr_R_ResetConsole": Procedure(console.reset),
            "ptr_R_FlushConsole": Procedure(console.flush),
            "R_PolledEvents": Procedure(self.poll),
        }
        self.handler = Handler(self.handle_input)
        library.begin(arguments)
        for name in ("ptr_R_WriteConsole", "R_Outputfile", "R_Consolefile"):
            library.hook(name, None)
        for name, callback in self.callbacks.items():
            library.hook(name, callback)
        library.setup_Rmainloop()
        self.is_up = True
        if library.context is not None:
            self.top = library.context.value
        library.run_Rmainloop()

    def is_at_top(self, prompt):
        if not self.is_up:  # a profile asks
            return False
        if self.half is None:
            return True
        if self.library.context is not None:
            return self.library.context.value == self.top
        depth = self.half("depth")
        return not self.library.number(depth, 1) and not prompt.startswith(b"Browse[")

    def greet(self):
        """R has come to its first prompt."""
        signal.signal(signal.SIGPIPE, lambda *_: None)  # R's own would jump out of our writing
        self.half = Half(self.library)
        if self.library.error_buffer is None:
            self.library.error_buffer = self.error_message
        self.version = self.library.text(self.half("version")) or ""
        self.tempdir = self.library.text(self.half("tempdir")) or ""
        self.pump_expression = self.library.parse(PUMP)
        self.side.keep_connected()

    def error_message(self):
        """What `R_curErrorBuf` gives, where that is not to be had."""
        return (self.library.text(self.half("error_message")) or "").encode()

    def stop(self, reason):
        """End when idle; what runs is interrupted."""
        self.stopping = self.stopping or reason
        if self.run is not None:
            self.library.pending.value = 1
        self.waker.wake()

    is_wanted = python_worker.Worker.is_wanted

    def astray(self, problem):
        """An exception of ours must not come out of a callback."""
        if isinstance(problem, KeyboardInterrupt):
            self.library.pending.value = 1
            return
        import traceback

        text = "".join(traceback.format_exception(type(problem), problem, problem.__traceback__))
        try:
            os.write(2, text.encode("utf-8", "replace"))
        except OSError:
            pass

    # R wants a line

    def read_console(self, prompt, buffer, size, history):
        """R's callback: the next line into `buffer`, or 0 for the end of the file."""
        try:
            data = self.next_line(prompt or b"", size)
        except BaseException as problem:
            self.astray(problem)
            data = b"\n"
        if data is None:
            return 0
        ctypes.memmove(buffer, data + b"\0", len(data) + 1)
        return 1

    def next_line(self, prompt, size):
        is_at_top = self.is_at_top(prompt)
        if os.getpid() != self.pid:
            if is_at_top:
                os._exit(0)
            return None
        if self.console.crashing:
            return b"1\n"  # of R's own possible actions: end now, with the signal
        return self.at_top() if is_at_top else self.ask(prompt, size)

    def at_top(self):
        """R's top level: the next expression of a run, or of the next run; None ends R."""
        if self.half is None:
            try:
                self.greet()
            except Exception as problem:  # an R in which nothing of ours can be done
                self.astray(problem)
                os._exit(1)
        self.typed = b""
        if self.run is not None:
            self.end_expression()
        while True:
            if self.run is not None:
                if self.place < self.count:
                    try:
                        return self.feed()
                    except RuntimeError as problem:
                        self.error("Error: %s" % problem, "Error", str(problem))
                self.end_run()
            if self.stopping:
                self.console.swallow(True)
                self.control.lose(self.control.connection)
                return None
            self.look_around()
            if self.queue:
                self.begin_run(self.queue.popleft())
            elif not self.stopping:
                self.idle()

    def ask(self, prompt, size):
        """A line for `readline()`, a browser and the like, from the client."""
        is_browser = prompt.startswith(b"Browse[")
        console = self.console
        console.settle_browser()
        if not self.typed:
            text = None
            if self.run is not None and not self.run.get("detached") and not self.pumping:
                before, newline, last = prompt.rpartition(b"\n")
                if before or newline:
                    console.put(1, before + newline)
                self.show_plots(at_question=True)
                text = self.ask_client(last.decode("utf-8", "replace"))
            if is_browser and (text is INTERRUPTED or text is None):
                self.has_given_up = True
                self.library.pending.value = 0
                return b"Q\n"
            if text is INTERRUPTED:
                console.is_deaf = True
                self.library.pending.value = 1
                return b"\n"
            if text is None:
                return self.end_of_file()
            self.typed = (text + "\n").replace("\0", "").encode("utf-8", "replace")
        end = min(self.typed.index(b"\n") + 1, size - 1)
        while end < len(self.typed) and 0x80 <= self.typed[end] < 0xC0:  # inside a character
            end -= 1
        line, self.typed = self.typed[:end], self.typed[end:]
        return line

    def end_of_file(self):
        """Nobody answers. `menu()` would ask again for ever: there it is 0."""
        is_menu = self.half is not None and self.library.number(self.half("in_menu"))
        return b"0\n" if is_menu else None

    def ask_client(self, prompt):
        self.asks += 1
        self.say({"type": "ask", "ask": self.asks, "prompt": clean(prompt), "hidden": False})
        number = self.run["number"]
        while self.asks not in self.answers:
            self.idle(250)
            self.interrupts.read()
            is_announced = self.interrupts.take(number)
            if is_announced:
                self.await_signal()
            if self.stopping or self.library.pending.value or is_announced:
                return INTERRUPTED
        return self.answers.pop(self.asks)

    def await_signal(self):
        """The signal follows its number at once; one that came after we went on would be a second interrupt."""
        deadline = clock() + SIGNAL_TIME
        while not self.library.pending.value and clock() < deadline:
            pause(0.0002)

    # Waiting, and what is done meanwhile

    def idle(self, longest=2000):
        """Wait until the server says something or R has something to do by itself."""
        self.console.flush()
        places = [self.waker, self.interrupts, *self.connections()]
        now = clock()
        watched = self.library.watched() if now >= self.pump_after else []
        wait_time = self.library.wait_time
        ticks = wait_time is not None and wait_time.value > 0
        if ticks or now < self.pump_after:
            longest = PUMP_TIME
        if len(places) < 4:
            longest = min(longest, max(1, (self.side.next_try - now) * 1000))
        poll = select.poll()
        for place in places:
            poll.register(place.fileno(), select.POLLIN)
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(longest)}
        if self.waker.fileno() in ready:
            self.waker.clear()
        self.look_around()
        if ticks or ready.intersection(watched):
            self.pump()

    def pump(self):
        """A turn of R's own event loop, at frame depth 0, where its packages expect to be called."""
        if self.pumping:
            return
        self.pumping = True
        if self.run is None:
            self.library.pending.value = 0
        try:
            self.library.evaluate(self.pump_expression, silent=False)
        finally:
            self.pumping = False
            self.pump_after = clock() + PUMP_TIME / 1000 if self.run is not None else 0.0

    def connections(self):
        both = self.control.connection, self.side.connection
        return [connection for connection in both if connection is not None and connection.fileno() >= 0]

    def poll(self):
        """R's callback, wherever it checks for interrupts: mostly there is nothing to do."""
        try:
            console = self.console
            if console.waiting:
                console.flush()
            if console.held:
                console.release()
            now = clock()
            if self.answer_until is not None and now > self.answer_until:
                self.is_late = True
                self.library.pending.value = 1
            if now < self.next_poll:
                return
            if not self.inside and self.half is not None and os.getpid() == self.pid:
                self.look_around()
            self.next_poll = clock() + POLL_TIME
        except BaseException as problem:
            self.astray(problem)

    def handle_input(self, data):
        """R's callback from `Sys.sleep` and the like: something has come from the server."""
        try:
            if os.getpid() != self.pid:
                self.watch(False)
            elif not self.inside:
                self.waker.clear()
                self.look_around()
        except BaseException as problem:
            self.astray(problem)

    def look_around(self):
        """Read what has come, connect again, answer what was asked."""
        self.inside = True
        try:
            self.streams.flush_c()
            self.read()
            self.watch()
            self.interrupts.read()
            if self.run is not None:
                number = self.run["number"] | SWALLOWED
                if number in self.interrupts.numbers:  # another program got the signal
                    self.interrupts.numbers.discard(number)
                    self.library.pending.value = 1
            if self.side.questions and not (
                self.library.suspended is not None and self.library.suspended.value
            ):
                self.side.answer_all()
        finally:
            self.inside = False

    def read(self):
        """Take in frames; nothing of R is touched here."""
        self.side.keep_connected()
        self.side.read()
        self.read_control()

    read_control = python_worker.Worker.read_control
    take = python_worker.Worker.take

    def watch(self, on=True):
        """Have R watch our connections too, so that `Sys.sleep` wakes. Entries are changed and never removed,
        since R may just be going along the list; one without a connection watches the waker."""
        if self.half is None:
            return
        if self.entries is None:
            callback = ctypes.cast(self.handler, ctypes.c_void_p)
            self.entries = [
                ctypes.cast(
                    self.library.addInputHandler(
                        self.library.handlers, self.waker.fileno(), callback, ACTIVITY
                    ),
                    ctypes.POINTER(InputHandler),
                )
                for _ in range(2)
            ]
        for entry, connection in zip(self.entries, (self.control.connection, self.side.connection)):
            is_open = on and connection is not None and connection.fileno() >= 0
            entry.contents.descriptor = connection.fileno() if is_open else self.waker.fileno()

    def ask_r(self, name, *arguments, limit=None):
        """The answer of a function in `r_side.R`; nothing is printed, and no interrupt is lost.
        Raises RuntimeError: there is none, or not within `limit` seconds."""
        library = self.library
        self.is_late, self.answer_until = False, clock() + limit if limit else None
        pending, library.pending.value = library.pending.value, 0
        quiet = self.console.swallow(True)
        try:
            answer = self.half.answer(name, *arguments)
            if self.is_late and answer.get("interrupted"):
                raise RuntimeError("it takes too long")
            pending = pending or answer.get("interrupted")
            return answer
        except RuntimeError:  # an interrupt may have come where R had nothing of ours to catch it
            pending = pending or self.is_interrupted()
            raise
        finally:
            self.answer_until = None
            self.console.swallow(quiet)
            library.pending.value = 1 if pending else library.pending.value and not self.is_late

    def is_interrupted(self):
        """Whether the server has interrupted the run that is going on."""
        self.interrupts.read()
        number = self.run["number"] if self.run else None
        return number is not None and bool(self.interrupts.numbers & {number, number | SWALLOWED})

    # One run

    def begin_run(self, run):
        number = run["number"]
        self.library.pending.value = 0
        self.interrupts.forget(number - 1)
        self.status, self.exit, self.place, self.count, self.sources = "ok", None, 0, 0, None
        self.has_given_up = False
        self.results = []
        self.answers.clear()
        self.streams.renew_fds()
        self.run = run
        self.set_terminal(run.get("width") or 0, bool(run.get("color")))
        self.traceback = self.half.last_traceback()
        self.sinks = self.count_sinks()
        self.started = self.shown = stopwatch()
        self.interrupts.read()
        if self.interrupts.take(number):
            self.library.pending.value = 0
            self.interrupted()
        else:
            self.parse(run)

    def parse(self, run):
        """All of the code, before any of it runs."""
        code = run["code"].replace("\r\n", "\n")
        is_timed = bool(run.get("timer")) and run.get("mode") == "script"
        if "\0" in code:
            self.error("Error: nul character not allowed", "Error", "nul character not allowed")
            return
        # R keeps the source of functions and of blocks, and finding it takes ten times as long as parsing.
        has_blocks = BLOCK.search(code) is not None
        filename, kept = run.get("filename") or "", run.get("keep") or None
        parsed = self.half("parse", code, filename, is_timed, has_blocks, kept)
        if self.library.is_a(parsed, STRING):
            self.sources = self.library.strings(parsed)
            self.count = len(self.sources)
        elif self.library.is_a(parsed, INTEGER):
            self.count = self.library.number(parsed)
        else:
            self.refuse(code, parsed)

    def refuse(self, code, parsed):
        """The code does not parse: nothing of it runs."""
        answer = {}
        try:
            answer = self.ask_r("check", code, file_of(self.run))
        except Exception:
            pass
        text = answer.get("message") or self.library.text(self.library.element(parsed, 0))
        text = text or "the code could not be read"
        prefix = answer.get("prefix") or "Error: "  # R's, in the user's language
        value = text[len(prefix) :] if text.startswith(prefix) else text
        self.error(prefix + value, "Error", value)

    def feed(self):
        self.place += 1
        if self.sources is not None:
            source = self.sources[self.place - 1]
            echo = "\n".join("## " + line for line in source.split("\n"))
            self.console.put(1, echo.encode("utf-8", "replace") + b"\n")
            self.timed = self.now()
        self.console.begin_expression(self.half.prepare(self.place))
        return NAME + b"\n"

    @staticmethod
    def now():
        times = os.times()
        return times.user + times.children_user, times.system + times.children_system, stopwatch()

    def end_expression(self):
        """R has come back to its top level."""
        console = self.console
        pending, self.library.pending.value = self.library.pending.value, 0
        has_value = console.slot is None or console.slot.value != console.unforced
        text = console.end_expression()
        failure = console.take_failure()
        if failure is None and not has_value:  # a handler of the user's has failed, too
            kind = "interrupt" if pending or self.is_interrupted() else "error"
            failure = Failure(kind, console.flushed_error or b"", console.flushed_error is not None)
        self.half.forget()
        if failure is not None:
            self.fail(failure)
        elif text:
            self.say_result(text)
        if self.sources is not None:
            spent = [after - before for after, before in zip(self.now(), self.timed)]
            console.put(1, b"   user  system elapsed\n%7.3f %7.3f %7.3f\n" % tuple(spent))
        # A page that the next expression goes on with need not be shown yet.
        if self.place >= self.count or stopwatch() - self.shown > SHOW_TIME:
            self.show_plots()
        self.interrupts.read()
        was_swallowed = self.run["number"] | SWALLOWED in self.interrupts.numbers
        if self.status == "ok" and (pending or was_swallowed or self.stopping):
            self.interrupted()
        if self.status == "interrupted" or self.exit is not None:
            self.count = 0

    def fail(self, failure):
        """A jump has ended the expression: by an error, an interrupt, or on purpose."""
        self.exit = self.take_exit()
        if self.exit is not None:
            if failure.text and not failure.printed and not failure.reported:
                self.console.put_error(failure.text)  # `options(error = function() q())`
            if self.exit:
                self.error("q(status = %d)" % self.exit, "quit", str(self.exit))
            if self.run.get("mode") != "script":
                self.notice("the session goes on; `q()` at the prompt leaves it", "exit")
        elif failure.kind == "interrupt" or (failure.kind == "unknown" and self.is_interrupted()):
            self.interrupted()
        elif failure.kind == "unknown" and not self.was_error(failure):
            self.interrupted(is_wish=not self.has_given_up)
        else:
            self.status = "error"
            self.report(failure)
        if not (self.run.get("mode") == "script" and self.run.get("keep_going")):
            self.count = 0

    def take_exit(self):
        """The status that `q()` has left for us."""
        return self.library.number(self.half("take_exit"), None)

    def interrupted(self, is_wish=False):
        """`is_wish`: the code left by itself, with `Q` in a browser for one, of which R says nothing."""
        self.status = "interrupted"
        self.count = 0
        self.say(interruption(is_wish), hold=True)

    def was_error(self, failure):
        """Whether a jump of which nothing was written was an error, and not an abort."""
        is_handled = self.library.number(self.half("has_error_handler"))
        has_text = bool(self.library.error_buffer and self.library.error_buffer())
        if not has_text:
            return False
        if self.half.last_traceback() == self.traceback and not (is_handled and failure.printed):
            return False
        failure.printed = failure.printed or not self.library.number(self.half("are_errors_shown"), 1)
        return True

    def report(self, failure, in_the_middle=False):
        """The error frame of an error, once."""
        if failure.reported:
            return
        failure.reported = True
        text = failure.text or self.library.error_buffer() or b"Error"
        text = text.decode("utf-8", "replace").rstrip("\n")
        value = message_of(text)
        if not value and (better := self.library.text(self.half("rlang_text"))):
            text, value = better, better.partition("\n! ")[2]
            failure.printed = True
        header = {"type": "error", "text": clean(text), "name": "Error", "value": clean(value)}
        header["traceback"] = self.calls()
        if failure.printed:
            header["printed"] = True
        self.say(header, waits=in_the_middle or self.run.get("mode") == "script", hold=not in_the_middle)

    def calls(self):
        """What `traceback()` tells, if it is about this error."""
        before, self.traceback = self.traceback, self.half.last_traceback()
        if before is not None and before == self.traceback:
            return []
        return [clean(call) for call in self.library.strings(self.half("traceback")) or ()]

    def error(self, text, name, value):
        self.status = "error" if self.status == "ok" else self.status
        header = {"type": "error", "text": clean(text), "name": name, "value": clean(value), "traceback": []}
        self.say(header, hold=True)

    def end_run(self):
        run = self.run
        if self.count_sinks() > self.sinks:
            self.notice("output goes to a sink; `sink()` brings it back", "sink")
        self.console.flush()
        self.streams.flush_c()
        done = {"type": "done", "number": run["number"], "status": self.status}
        done.update(elapsed=stopwatch() - self.started, exit=self.exit)
        self.half("forget")
        self.run = None
        self.control.post(done)

    def count_sinks(self):
        return self.library.number(self.half("sinks"))

    # What a run says

    def say(self, header, buffers=(), hold=False, waits=False):
        """A frame of the run, after what it printed. What it prints next goes another way and could be
        read sooner: so R goes on (`waits`) only when the server has it, or does not answer."""
        self.console.flush()
        self.streams.flush_c()
        header["number"] = self.run["number"] if self.run else None
        waits = waits and self.control.connection is not None
        if waits:
            header["wait"] = True
        self.control.post(header, buffers, hold and not waits)
        if waits:
            self.settle(header["frame"])

    def settle(self, number):
        deadline = clock() + python_worker.SETTLE_TIME
        while self.control.kept and self.control.kept[0][0] <= number and self.control.connection is not None:
            remains = deadline - clock()
            if remains <= 0:
                return
            poll = select.poll()
            poll.register(self.control.connection.fileno(), select.POLLIN)
            poll.poll(remains * 1000)
            self.read()

    def notice(self, text, about):
        self.say({"type": "notice", "text": text, "about": about}, hold=True)

    def say_result(self, text):
        self.results.append(text)
        self.say(
            {"type": "result", "text": clean(text), "printed": True},
            hold=len(self.results) % MOST_HELD_FRAMES,
        )

    def show_plots(self, at_question=False):
        """What was drawn and is not shown yet; at a question too, since who answers wants to see it."""
        is_drawing = (
            self.library.devices is None or self.library.devices() > 1
        )  # the first is R's null device
        if not (is_drawing or self.library.number(self.half("has_pages"))):
            return
        self.shown = stopwatch()
        try:
            plots = self.ask_r("plots", at_question).get("plots") or []
        except Exception as problem:
            if not self.library.pending.value:  # else the run is interrupted: they come later
                self.notice("the plots could not be taken: %s" % problem, "plot")
            return
        self.pictures.show(plots)

    def set_terminal(self, width, color):
        """R and the programs that it starts learn the submitter's terminal."""
        if (width, color) == self.terminal:
            return
        self.terminal = width, color
        if width:
            self.half("width", width)
        self.set_environment("COLUMNS", str(width) if width else self.environment.get("COLUMNS"))
        if "NO_COLOR" not in os.environ:
            self.set_environment(COLORS, "256" if color else self.environment.get(COLORS), weak=color)

    set_environment = python_worker.Worker.set_environment


class Pictures:
    """The plots of a session on their way to the server; those that look as before stay here."""

    def __init__(self, worker):
        self.worker = worker
        self.digests = {}  # of the pages that may still change

    def show(self, plots):
        for plot in plots:
            if "failed" in plot:
                self.worker.notice(plot["failed"], "plot")
                continue
            try:
                with open(plot["path"], "rb") as file:
                    data = file.read()
                os.unlink(plot["path"])
            except OSError as problem:
                self.worker.notice("a plot could not be read: %s" % problem.strerror, "plot")
                continue
            if self.is_new(plot["id"], data):
                self.show_one(plot, data)

    def is_new(self, page, data):
        """Whether that page did not look like this when it was last shown."""
        digest = hashlib.sha256(data).digest()
        before = self.digests.pop(page, None)
        self.digests[page] = digest
        if len(self.digests) > MOST_PAGES:
            del self.digests[next(iter(self.digests))]
        return digest != before

    def show_one(self, plot, data):
        if len(data) > python_worker.LONGEST_FORM:
            text = "too long to be shown, left out: a plot of %d MB" % (len(data) // 1_000_000)
            self.worker.notice(text, "cut")
            return
        header = {"type": "display", "text": clean(plot["text"]), "data": {}}
        header.update(display=plot["id"], update=plot["update"])
        self.worker.say(header, [(plot["mime"], data)], waits=True)


INTERRUPTED = object()


def interruption(is_wish):
    """The error frame of a run that was interrupted, or of one that left by itself (`is_wish`)."""
    header = {"type": "error", "text": "interrupted", "name": "interrupt", "value": "", "traceback": []}
    if is_wish:
        header.update(text="", name="abort", printed=True)
    return header


def file_of(run):
    """What a script is called in the messages of R's parser; None: it was typed, as at R's console."""
    return run.get("filename") or "<script>" if run.get("mode") == "script" else None


def message_of(text):
    """The message in what R writes of an error, `Error in call : message` or `Error: message`, in any language."""
    first, colon, _ = text.partition("\n")[0].partition(" : ")
    if colon:
        return text[len(first) + len(colon) :].strip()
    return text.partition(":")[2].strip()


# --- as a program ------------------------------------------------------------------------------


def main(arguments):
    """`r_worker.py RUNDIR WORKERID ENGINE [REASON]`: the reason why another Python could not embed R."""
    rundir, worker_id, engine = arguments[:3]
    if engine == "pipe":
        become(sys.executable, os.path.join(HERE, "r_pipe.py"), *arguments)
    home = os.environ.get("R_HOME", "")
    name = "libR.dylib" if sys.platform == "darwin" else "libR.so"
    path = os.environ.get("REMOTER_R_LIBRARY") or os.path.join(home, "lib", name)
    try:
        library = Library(path)
    except Missing as problem:
        fall_back(arguments, str(problem))
        return
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != HERE]
    worker = Worker(library, os.path.abspath(rundir), worker_id)

    def interrupt(signum, frame):
        """For Python code that R runs: R's own signal handler comes in place of this. Never within ours."""
        while frame is not None and frame.f_code.co_filename != __file__:
            frame = frame.f_back
        if frame is not None and frame.f_code.co_name == "start":
            raise KeyboardInterrupt
        library.pending.value = 1

    def terminate(signum, frame):
        if os.getpid() != worker.pid:  # a child that R forked
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        worker.stop("terminated")

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGHUP, lambda *_: None)  # not ignored: programs that it starts would inherit that
    options = ["R", "--interactive", "--no-readline", "--no-save", "--no-restore", "--quiet"]
    if os.environ.get("REMOTER_R_VANILLA") == "1":
        options.append("--vanilla")
    worker.start(options)


def fall_back(arguments, reason):
    """R cannot be embedded in this process: in the system's own Python perhaps, else it runs on pipes."""
    if arguments[2] == "embed":
        sys.stderr.write("R cannot be embedded: %s\n" % reason)
        sys.exit(1)
    other = "/usr/bin/python3"
    is_second = len(arguments) > 3
    if not is_second and os.access(other, os.X_OK) and not os.path.samefile(other, sys.executable):
        become(other, __file__, *arguments, reason)
    become(sys.executable, os.path.join(HERE, "r_pipe.py"), *arguments[:3], *(arguments[3:] or [reason]))


def become(python, program, *arguments):
    """Run another program in this process, which the keeper watches."""
    os.execv(python, [python, os.path.abspath(program), *arguments])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
