# The R half of an R session: what only R itself can answer or do; in the user's R, on the server's machine.
#
# `eval(parse(THIS))` anywhere is all that is needed, and twice does no harm. The value, an
# environment, also stands as `.remoter` among R's autoloads: found from the top level, listed by
# neither `ls()` nor `search()`, and not swept away by `rm(list = ls(all = TRUE))`. Its functions
# see base R only, whatever the user has defined. Those that answer questions give one JSON text
# in UTF-8, {"error": ...} when they could not.
#
# One file because it travels whole into the user's R: base R from 3.5 on and nothing else. From
# top to bottom: JSON, reading code, completion, help, variables, objects that come and go, plots,
# what is put in place of what needs a terminal or a screen, and R at the end of pipes.

local(envir = if (exists(".remoter", envir = .AutoloadEnv, inherits = FALSE)) {
  get(".remoter", envir = .AutoloadEnv)
} else {
  assign(".remoter", new.env(parent = baseenv()), envir = .AutoloadEnv)
}, {

  # --- JSON: each function gives the text of a value --------------------------------------------

  # Texts as JSON strings, all at once; NA is null.
  quoted <- function(texts) {
    texts <- as.character(texts)
    if (!length(texts)) {
      return(character())
    }
    absent <- is.na(texts)
    texts <- repaired(texts)
    texts <- gsub("\\", "\\\\", texts, fixed = TRUE)
    texts <- gsub("\"", "\\\"", texts, fixed = TRUE)
    if (any(grepl("[\001-\037\177]", texts))) {
      texts <- gsub("\n", "\\n", texts, fixed = TRUE)
      for (code in c(1:31, 127)) {
        texts <- gsub(intToUtf8(code), sprintf("\\u%04x", code), texts, fixed = TRUE)
      }
    }
    texts <- paste0("\"", texts, "\"")
    texts[absent] <- "null"
    texts
  }

  # As UTF-8; bytes that are no text become `<ff>`.
  repaired <- function(texts) {
    texts <- enc2utf8(texts)
    broken <- !is.na(texts) & !validUTF8(texts)
    texts[broken] <- iconv(texts[broken], "UTF-8", "UTF-8", sub = "byte")
    texts
  }

  numbered <- function(numbers) {
    numbers <- as.double(numbers)
    texts <- sprintf("%.15g", numbers)
    texts[!is.finite(numbers)] <- "null"
    texts
  }

  truth <- function(value) if (isTRUE(value)) "true" else "false"

  listed <- function(parts) paste0("[", paste(parts, collapse = ","), "]")

  object <- function(...) {
    parts <- c(...)
    paste0("{", paste0("\"", names(parts), "\":", parts, collapse = ","), "}")
  }

  # The answer, or what went wrong while it was made; warnings are nobody's business here.
  answering <- function(answer) {
    tryCatch(
      attempting(
        suppressWarnings(suppressMessages(answer)),
        function(problem) object(error = quoted(words_of(problem)))
      ),
      interrupt = function(problem) object(error = quoted("interrupted"), interrupted = "true")
    )
  }

  # What `failed` makes of an error of ours; `geterrmessage()` goes on to tell the user's last one.
  attempting <- function(code, failed = function(problem) NULL) {
    last_error <- geterrmessage()
    on.exit(.Internal(seterrmessage(last_error)))
    tryCatch(code, error = failed)
  }

  words_of <- function(problem) {
    tryCatch(
      paste(conditionMessage(problem), collapse = "\n"),
      error = function(again) "an error that cannot be shown"
    )
  }

  # --- reading code -----------------------------------------------------------------------------

  # Whether it is whole: "complete", "incomplete" (more lines would help) or "invalid". The message is
  # what R's console says; of a file, its name and line.
  check <- function(code, file = NULL) answering({
    problem <- tryCatch(
      {
        parse(text = code, keep.source = FALSE, encoding = "UTF-8")
        NULL
      },
      error = identity
    )
    if (is.null(problem)) object(status = quoted("complete")) else judge(code, words_of(problem), file)
  })

  # What the parser says begins with the place, `<text>:2:0: `, in every language; its words differ.
  judge <- function(code, message, file) {
    first <- sub("\n.*", "", message)
    place <- regmatches(first, regexec("^<text>:([0-9]+):([0-9]+): (.*)", first))[[1L]]
    if (!length(place)) {
      return(invalid(message, NA))
    }
    lines <- strsplit(paste0(code, "\n "), "\n", fixed = TRUE)[[1L]]
    line <- as.integer(place[2L])
    at_end <- place[3L] == "0" && line >= length(lines)
    is_open <- at_end || grepl("INCOMPLETE_STRING", place[4L], fixed = TRUE)
    message <- if (!is.null(file)) {
      paste0(file, substring(message, nchar("<text>") + 1L))
    } else if (is_open) {
      place[4L]
    } else {
      in_quotes(place[4L], message, !parses(lines[seq_len(line - 1L)]))
    }
    if (is_open) {
      return(object(
        status = quoted("incomplete"), message = quoted(message),
        prefix = quoted(translated("Error: ")), line = numbered(line)
      ))
    }
    invalid(message, line)
  }

  # As the console says it: with the line, or the last two of an expression that stands on several.
  in_quotes <- function(problem, message, is_long) {
    shown <- strsplit(message, "\n", fixed = TRUE)[[1L]][-1L]
    shown <- sub("^[0-9]+: ?", "", shown[grepl("^[0-9]+:", shown)])
    if (length(shown) < 2L || !is_long) {
      return(sprintf(translated("%s in \"%s\""), problem, shown[length(shown)]))
    }
    sprintf(translated("%s in:\n\"%s\n%s\""), problem, shown[1L], shown[2L])
  }

  parses <- function(lines) {
    tryCatch(
      {
        parse(text = lines, keep.source = FALSE, encoding = "UTF-8")
        TRUE
      },
      error = function(problem) FALSE
    )
  }

  invalid <- function(message, line) {
    prefix <- translated("Error: ")
    object(
      status = quoted("invalid"), message = quoted(paste0(prefix, message)),
      prefix = quoted(prefix), line = numbered(line)
    )
  }

  # As R itself says it, with its blanks, which newer versions of `gettext` would trim.
  translated <- function(text) {
    exactly <- if ("trim" %in% names(formals(gettext))) list(trim = FALSE)
    do.call(gettext, c(list(text, domain = "R"), exactly))
  }

  # The source of each top-level expression, and the line on which it begins.
  pieces <- function(code) answering({
    code <- parse(text = code, keep.source = TRUE, encoding = "UTF-8")
    texts <- source_of(code)
    lines <- vapply(attr(code, "srcref"), function(place) place[1L], 1L)
    object(pieces = listed(vapply(seq_along(texts), function(i) {
      object(text = quoted(texts[i]), line = numbered(lines[i]))
    }, "")))
  })

  strings_and_comments <- paste0(
    "(?s)[rR]([\"'])(-*)[(\\[{].*?[)\\]}]\\2\\1|\"(?:[^\"\\\\]|\\\\.)*\"|'(?:[^'\\\\]|\\\\.)*'",
    "|`[^`]*`|#[^\n]*|[\"'].*"
  )

  # Code up to the cursor as one line in which strings are empty and comments gone, from the last
  # brace that is still open; a string that is still being typed stays, for it is a path or a name.
  line_for_completion <- function(before) {
    size <- nchar(before)
    before <- substring(before, max(1L, size - 20000L))
    found <- gregexpr(strings_and_comments, before, perl = TRUE)
    regmatches(before, found) <- list(vapply(regmatches(before, found)[[1L]], function(piece) {
      switch(substring(piece, 1L, 1L),
        "#" = "",
        "`" = piece,
        if (grepl("^[rR]|^(?s)([\"']).*\\1$", piece, perl = TRUE) && nchar(piece) > 1L) "\"\"" else piece
      )
    }, ""))
    brackets <- gregexpr("[][(){}]", before)[[1L]]
    depth <- 0L
    for (place in rev(brackets[brackets > 0L])) {
      bracket <- substring(before, place, place)
      depth <- depth + if (bracket %in% c(")", "]", "}")) 1L else -1L
      if (depth < 0L) {
        if (bracket == "{") {
          before <- substring(before, place + 1L)
          break
        }
        depth <- 0L
      }
    }
    gsub("\n", " ", before, fixed = TRUE)
  }

  # --- completion -------------------------------------------------------------------------------

  # What may stand at the cursor, found by R's own completer.
  complete <- function(code, cursor) answering({
    found <- matches_at(line_for_completion(substring(code, 1L, cursor)))
    object(
      matches = listed(quoted(found$matches)),
      types = listed(quoted(found$types)),
      start = numbered(cursor - nchar(found$token)),
      end = numbered(cursor)
    )
  })

  matches_at <- function(line) {
    asked <- utils:::.CompletionEnv
    utils:::.assignLinebuffer(line)
    utils:::.assignEnd(nchar(line))
    utils:::.guessTokenFromLine()
    token <- asked[["token"]]
    in_quotes <- utils:::isInsideQuotes()
    if (!in_quotes && is_unread(peek(owner_in(token)))) {
      return(list(token = token, matches = character(), types = character()))
    }
    called <- utils:::inFunction()
    if (length(called) && is_unread(peek(parsed(called[1L])))) { # whose arguments nobody can know
      with_arguments <- asked$settings[["args"]]
      on.exit(utils::rc.settings(args = with_arguments))
      utils::rc.settings(args = FALSE)
    }
    utils:::.completeToken()
    matches <- as.character(utils:::.retrieveCompletions())
    suffix <- utils:::rc.getOption("funarg.suffix")
    arguments <- !in_quotes & nzchar(suffix) & endsWith(matches, suffix)
    matches[arguments] <- sub(" *= *$", "=", matches[arguments])
    matches <- matches[!is.na(matches) & nzchar(matches)]
    if (!in_quotes) matches <- marked(matches)
    list(token = token, matches = matches, types = kinds_of(matches, in_quotes))
  }

  # What stands before the last `$` or `@`, which R's completer would compute.
  owner_in <- function(token) {
    if (grepl("[$@]", token)) parsed(sub("[$@][^$@]*$", "", sub("^[?]+", "", token)))
  }

  # That text as one expression, or NULL.
  parsed <- function(text) {
    attempting({
      code <- parse(text = text, keep.source = FALSE, encoding = "UTF-8")
      if (length(code) == 1L) code[[1L]]
    })
  }

  # What is no name by itself stands between backticks, and last. `names<-` and its like are offered
  # where nothing plain is: a Tab would complete no name of theirs otherwise, for want of a common beginning.
  marked <- function(matches) {
    parts <- regmatches(matches, regexec("^((?:.*[$@:?(])?)([^$@:?(]+)$", matches, perl = TRUE))
    odd <- vapply(parts, function(part) length(part) && !grepl(usual_name, part[3L], perl = TRUE), NA)
    odd <- odd & !grepl("^[`%]|=$", matches) & !matches %in% c("in ", "else ", "repeat ", "next ", "break ")
    if (!all(odd)) {
      kept <- !(odd & grepl("<-", matches, fixed = TRUE))
      matches <- matches[kept]
      parts <- parts[kept]
      odd <- odd[kept]
    }
    odd_ones <- vapply(parts[odd], function(part) paste0(part[2L], "`", part[3L], "`"), "")
    unique(c(matches[!odd], odd_ones))
  }

  usual_name <- "^(?:[\\p{L}]|\\.(?![0-9]))[\\p{L}\\p{N}._]*$|^\\.$|`"

  kinds_of <- function(matches, in_quotes) {
    if (in_quotes) {
      return(rep_len("path", length(matches)))
    }
    kinds <- character(length(matches))
    kinds[endsWith(matches, "=")] <- "param"
    kinds[endsWith(matches, "::")] <- "module"
    few <- utils::head(which(kinds == ""), 100L)
    kinds[few] <- ifelse(vapply(matches[few], is_function_name, NA), "function", "")
    kinds
  }

  # Whether that name is a function's. Nothing is computed or loaded in order to know.
  is_function_name <- function(name) {
    place <- place_of(name)
    if (is.null(place)) {
      return(FALSE)
    }
    data <- get0(".__NAMESPACE__.", envir = place_of_package(place), inherits = FALSE)[["lazydata"]]
    if (is.environment(data) && exists(name, envir = data, inherits = FALSE)) {
      return(FALSE)
    }
    if (is_of_package(place)) {
      return(exists(name, envir = place, mode = "function", inherits = FALSE))
    }
    is.function(read_binding(name, place))
  }

  # The first environment from the user's on that has the name, or NULL.
  place_of <- function(name) {
    place <- globalenv()
    while (!identical(place, emptyenv())) {
      if (exists(name, envir = place, inherits = FALSE)) {
        return(place)
      }
      place <- parent.env(place)
    }
    NULL
  }

  place_of_package <- function(place) {
    name <- sub("^package:", "", environmentName(place))
    if (name %in% loadedNamespaces()) asNamespace(name) else emptyenv()
  }

  # --- help -------------------------------------------------------------------------------------

  name_pattern <- "(?:`[^`]+`|[\\p{L}.][\\p{L}\\p{N}._]*)"

  # What the name at the cursor is, for a person to read.
  inspect <- function(code, cursor = nchar(code)) answering({
    name <- name_at(code, cursor)
    text <- if (nzchar(name)) tell(name, peek(code_of(name))) else ""
    object(found = truth(nzchar(text)), text = quoted(text))
  })

  # A word of R's own, like `if`, is a name here.
  code_of <- function(name) if (grepl("[$@:]", name)) parsed(name) else as.name(gsub("`", "", name, fixed = TRUE))

  # The name that is meant: the whole, the one at the cursor, or the function being called.
  name_at <- function(code, cursor) {
    chain <- paste0(name_pattern, "(?:(?:::?:?|\\$|@)", name_pattern, ")*")
    whole <- sub("^[?\\s]+|\\s+$", "", code, perl = TRUE)
    if (grepl(paste0("^", chain, "$"), whole, perl = TRUE)) {
      return(whole)
    }
    found <- gregexpr(chain, code, perl = TRUE)[[1L]]
    ends <- found + attr(found, "match.length") - 1L
    here <- which(found > 0L & found - 1L <= cursor & ends >= cursor)
    if (length(here)) {
      return(substring(code, found[here[1L]], ends[here[1L]]))
    }
    line <- line_for_completion(substring(code, 1L, cursor))
    as.character(c(utils:::inFunction(line, nchar(line)), ""))[1L]
  }

  # The value of `a`, `pkg::a`, `a$b`, `a@b`, or a mark: `unknown`, `computed` or `unforced`. No function of
  # the user is called, no active binding computed and no promise forced but those in which packages have their data.
  peek <- function(code) {
    if (is.symbol(code)) {
      return(peek_at(as.character(code), place_of(as.character(code))))
    }
    if (!is.call(code)) {
      return(unknown)
    }
    operator <- if (is.symbol(code[[1L]])) as.character(code[[1L]]) else ""
    if (operator %in% c("::", ":::")) {
      package <- as.character(code[[2L]])
      value <- get0(as.character(code[[3L]]), envir = asNamespace(package))
      return(if (is.null(value)) getExportedValue(package, as.character(code[[3L]])) else value)
    }
    if (operator %in% c("$", "@")) {
      owner <- peek(code[[2L]])
      return(if (is_mark(owner)) owner else part_of(owner, as.character(code[[3L]]), operator == "@"))
    }
    for (name in all.vars(code)) {
      if (is_unread(peek(as.name(name)))) {
        return(computed)
      }
    }
    unknown
  }

  peek_at <- function(name, place) {
    if (is.null(place)) {
      unknown
    } else if (is_of_package(place) && !bindingIsActive(name, place)) {
      get(name, envir = place)
    } else {
      read_binding(name, place)
    }
  }

  part_of <- function(owner, name, is_slot) {
    value <- if (is_slot) {
      attr(owner, name, exact = TRUE)
    } else if (is.environment(owner)) {
      if (exists(name, envir = owner, inherits = FALSE)) read_binding(name, owner)
    } else if (is.list(owner)) {
      unclass(owner)[[name]]
    }
    if (is.null(value)) unknown else value
  }

  is_of_package <- function(place) startsWith(environmentName(place), "package:") || identical(place, baseenv())

  is_unread <- function(value) identical(value, computed) || identical(value, unforced)

  is_mark <- function(value) is_unread(value) || identical(value, unknown)

  unknown <- new.env(parent = emptyenv())

  tell <- function(name, value) {
    if (is_mark(value)) {
      return(if (is_unread(value)) paste0("Class: ", row_about(value)[1L], ", ", row_about(value)[4L]) else "")
    }
    if (is.function(value)) {
      return(paste(c(signature_of(name, value), help_on(name)), collapse = "\n"))
    }
    structure <- utils::capture.output(utils::str(value, vec.len = 3, list.len = 30, give.attr = FALSE))
    extent <- dim(value)
    lines <- c(
      paste("Class:", paste(class(value), collapse = ", ")),
      if (!is.null(extent)) paste("Dimensions:", paste(extent, collapse = " x ")),
      utils::head(structure, 40L)
    )
    paste(lines, collapse = "\n")
  }

  signature_of <- function(name, value) {
    lines <- utils::capture.output(print(args(value)))
    lines <- lines[lines != "NULL"]
    lines[1L] <- sub("^function *", name, lines[1L])
    home <- environment(value)
    if (is.null(home)) home <- baseenv()
    home <- if (isNamespace(home)) getNamespaceName(home) else environmentName(home)
    c(sub(" +$", "", lines), if (!home %in% c("", "R_GlobalEnv")) paste("Package:", home))
  }

  # The title and the description of its help page.
  help_on <- function(name) {
    parts <- strsplit(name, ":+")[[1L]]
    topic <- gsub("`", "", parts[length(parts)], fixed = TRUE)
    package <- if (length(parts) > 1L) parts[1L] else NULL
    pages <- utils::help((topic), package = (package), help_type = "text")
    if (!length(pages)) {
      return(NULL)
    }
    page <- utils:::.getHelpFile(pages[[1L]])
    tags <- vapply(page, function(part) attr(part, "Rd_tag"), "")
    page <- page[tags %in% c("\\title", "\\name", "\\description")]
    text <- utils::capture.output(tools::Rd2txt(
      structure(page, class = "Rd"),
      options = list(underline_titles = FALSE), fragment = FALSE
    ))
    text <- trimws(gsub("[^\n]\b", "", text), "right")
    text[!(text == "" & c(FALSE, utils::head(text == "", -1L)))]
  }

  # --- variables --------------------------------------------------------------------------------

  most_variables <- 5000L
  longest_look <- 0.3 # seconds for all of them

  # The user's variables; `more`: how many there are beyond those. Promises are not forced and active
  # bindings not computed.
  variables <- function() answering({
    until <- proc.time()[[3L]] + longest_look
    names <- ls(globalenv(), sorted = FALSE)
    count <- length(names)
    # All in the order of the user's language, as `ls()`; very many in that of the alphabet, which is quick.
    names <- if (count > most_variables) sort(names, method = "radix")[seq_len(most_variables)] else sort(names)
    rows <- character()
    while (length(rows) < length(names) && (!length(rows) || proc.time()[[3L]] < until)) {
      rows <- c(rows, rows_of(names[seq(length(rows) + 1L, min(length(rows) + 250L, length(names)))]))
    }
    object(variables = listed(rows), more = numbered(count - length(rows)))
  })

  rows_of <- function(names) {
    active <- vapply(names, bindingIsActive, NA, env = globalenv(), USE.NAMES = FALSE)
    passive <- names[!active]
    copies <- new.env(hash = TRUE, parent = emptyenv())
    on.exit(rm(list = ls(copies, all.names = TRUE), envir = copies))
    copy_bindings(passive, globalenv(), copies)
    rows <- lapply(seq_along(names), function(place) {
      if (active[place]) {
        c("active binding", "null", NA, "computed when it is read")
      } else {
        row_of(names[place], copies)
      }
    })
    column <- function(place) vapply(rows, `[[`, "", place)
    paste0(
      "{\"name\":", quoted(names), ",\"type\":", quoted(column(1L)), ",\"shape\":", column(2L),
      ",\"size\":", numbered(column(3L)), ",\"text\":", quoted(one_line(column(4L))), "}"
    )
  }

  # Class, shape (as JSON), bytes, and a line about the value; all as text.
  row_of <- function(name, copies) {
    tryCatch(
      row_about(held_by(name, copies)),
      error = function(problem) c("object", "null", NA, "<cannot be shown>")
    )
  }

  # No value may be left in a list or closure here: R would take it for shared, and copy it when it is changed.
  row_about <- function(value) {
    if (identical(value, unforced)) {
      return(c("promise", "null", NA, "computed when it is first read"))
    }
    if (identical(value, computed)) {
      return(c("active binding", "null", NA, "computed when it is read"))
    }
    size <- size_of(value)
    shape <- if (is.function(value)) "null" else listed(sprintf("%.0f", as.double(extent_of(value))))
    c(class(value)[1L], shape, if (is.null(size)) NA else sprintf("%.0f", size), short(value))
  }

  unforced <- new.env(parent = emptyenv()) # stands for the value of a promise
  computed <- new.env(parent = emptyenv()) # and for that of an active binding

  # What a binding holds, without forcing or computing it.
  read_binding <- function(name, place) {
    if (bindingIsActive(name, place)) {
      return(computed)
    }
    copies <- new.env(hash = TRUE, parent = emptyenv())
    on.exit(rm(list = name, envir = copies))
    copy_bindings(name, place, copies)
    held_by(name, copies)
  }

  # The one way in R to hold bindings without forcing promises. The copies must be removed again: see above.
  copy_bindings <- function(names, place, copies) {
    tryCatch(.Internal(importIntoEnv(copies, names, place, names)), error = function(problem) {
      half <- length(names) %/% 2L
      if (half) {
        copy_bindings(names[seq_len(half)], place, copies)
        copy_bindings(names[-seq_len(half)], place, copies)
      } else {
        # The variable of a loop: R keeps its number in the binding itself, and refuses to copy that.
        assign(names, get(names, envir = place), envir = copies)
      }
    })
  }

  # To substitute gives the code of a promise and the value of anything else; where the value may
  # itself be code, its bytes tell them apart. (`substitute` would make R take the value for shared.)
  held_by <- function(name, copies) {
    value <- methods::substituteDirect(as.name(name), copies, cleanFunction = FALSE)
    if (typeof(value) %in% c("language", "symbol", "bytecode")) {
      switch(promised(name, copies), no = value, forced = get(name, envir = copies), unforced)
    } else {
      value
    }
  }

  # Whether a binding holds a promise: "no", "forced" or "unforced". The bytes in which R writes a list
  # with one binding have its type at a known place, and whether a promise still has its environment.
  promised <- function(name, place) {
    one <- new.env(hash = FALSE, parent = emptyenv())
    copied <- tryCatch(
      {
        .Internal(importIntoEnv(one, "x", place, name))
        TRUE
      },
      error = function(problem) FALSE # the variable of a loop
    )
    if (!copied) {
      return("no")
    }
    bytes <- serialize(one, NULL, xdr = TRUE, version = 2L, refhook = function(place) {
      if (!identical(place, one)) ""
    })
    rm("x", envir = one)
    kind <- as.integer(bytes[46:47])
    if (kind[2L] != 5L) "no" else if (bitwAnd(kind[1L], 4L)) "unforced" else "forced"
  }

  # `length` and `dim` without methods, which are anybody's code.
  extent_of <- function(value) {
    if (is.environment(value) || typeof(value) %in% c("externalptr", "weakref", "S4")) {
      return(1L)
    }
    if (is.object(value) && is.list(value) && inherits(value, "data.frame")) {
      return(c(.row_names_info(value, 2L), length(unclass(value))))
    }
    extent <- attr(value, "dim", exact = TRUE)
    if (!is.null(extent)) {
      return(extent)
    }
    if (is.object(value)) length(unclass(value)) else length(value)
  }

  widths <- c(logical = 4, integer = 4, double = 8, complex = 16, raw = 1)

  # Bytes, where that is known without looking at every element; else NULL.
  size_of <- function(value) {
    kind <- typeof(value)
    if (kind %in% names(widths)) {
      count <- if (is.object(value)) length(unclass(value)) else length(value)
      return(48 + count * widths[[kind]])
    }
    if (kind == "NULL") {
      return(0)
    }
    if (kind == "character" && length(unclass(value)) <= 10000) {
      return(as.double(utils::object.size(value)))
    }
    if (kind == "list" && inherits(value, "data.frame") && length(unclass(value)) <= 200L) {
      sizes <- lapply(unclass(value), function(column) if (is.list(column)) NULL else size_of(column))
      if (!any(vapply(sizes, is.null, NA))) {
        return(sum(unlist(sizes), 48 + 8 * length(sizes)))
      }
    }
    NULL
  }

  # Each on one line, of at most 80 characters.
  one_line <- function(texts, room = 80L) {
    texts <- gsub("[[:cntrl:]]+", " ", repaired(texts))
    long <- nchar(texts) > room
    texts[long] <- paste0(substr(texts[long], 1L, room - 1L), "\u2026")
    texts
  }

  # The beginning of a value; no method of the user is called.
  short <- function(value) {
    switch(typeof(value),
      "NULL" = "NULL",
      closure = paste0("function(", paste(names(formals(value)), collapse = ", "), ")"),
      builtin = , special = "function",
      environment = if (nzchar(environmentName(value))) environmentName(value) else "<environment>",
      list = short_list(value),
      language = , symbol = deparse(value, nlines = 1L)[1L],
      expression = paste("expression of", length(value)),
      S4 = paste0("<", class(value)[1L], ">"),
      logical = , integer = , double = , complex = , raw = , character = short_vector(value),
      paste0("<", typeof(value), ">")
    )
  }

  short_list <- function(value) {
    bare <- unclass(value)
    labels <- names(bare)
    if (is.null(labels)) {
      return(paste("list of", length(bare)))
    }
    paste0(
      paste(utils::head(labels, 20L), collapse = ", "),
      if (length(labels) > 20L) ", \u2026"
    )
  }

  short_vector <- function(value) {
    count <- length(if (is.object(value)) unclass(value) else value)
    if (inherits(value, "factor")) {
      levels <- attr(value, "levels", exact = TRUE)
      shown <- paste(encodeString(utils::head(levels, 8L), quote = "\""), collapse = " ")
      return(paste0(length(levels), " levels: ", shown))
    }
    first <- .subset(value, seq_len(min(count, 12L)))
    kind <- class(value)
    zone <- attr(value, "tzone", exact = TRUE)
    attributes(first) <- NULL
    texts <- if (is.character(first)) {
      encodeString(substr(repaired(first), 1L, 60L), quote = "\"")
    } else if ("Date" %in% kind) {
      format.Date(structure(first, class = "Date"))
    } else if ("POSIXct" %in% kind) {
      format.POSIXct(structure(first, class = c("POSIXct", "POSIXt"), tzone = zone))
    } else if (is.double(first)) {
      sprintf("%.7g", first)
    } else {
      as.character(first)
    }
    texts[is.na(texts)] <- "NA"
    if (!count) {
      return(paste0(typeof(value), "(0)"))
    }
    paste0(paste(texts, collapse = " "), if (count > length(texts)) " \u2026")
  }

  # What it is, in a few words: `data.frame 32 x 11, 7 kB`.
  describe <- function(value) {
    kind <- class(value)[1L]
    if (is.null(value) || is.function(value) || is.environment(value) || is.language(value)) {
      return(kind)
    }
    size <- size_of(value)
    paste0(
      kind, " ", paste(extent_of(value), collapse = " x "),
      if (!is.null(size) && size >= 1000) paste0(", ", in_units(size))
    )
  }

  in_units <- function(bytes) {
    units <- c("bytes", "kB", "MB", "GB", "TB")
    power <- min(length(units) - 1L, floor(log(bytes, 1000)))
    paste(formatC(bytes / 1000^power, digits = 3L, width = 1L, format = "fg"), units[power + 1L])
  }

  # --- objects that come and go -----------------------------------------------------------------

  if (!exists("kept", inherits = FALSE)) {
    kept <- new.env(parent = emptyenv())
  }

  # Code that computes a value and holds it until `pack` or `drop` asks for it. No function is called
  # around the user's code (`.Internal` makes no frame for this one): errors and warnings would name it.
  keeping <- function(transfer, code) {
    value <- as.call(c(base::`{`, as.list(code)))
    hold <- as.call(list(.Internal, call("assign", transfer, value, kept, FALSE)))
    list(as.call(list(base::`{`, hold, as.call(list(last_value)))))
  }

  last_value <- function() invisible(get0(".Last.value", envir = baseenv()))

  drop <- function(transfer) {
    if (exists(transfer, envir = kept, inherits = FALSE)) {
      rm(list = transfer, envir = kept)
    }
    object(dropped = "true")
  }

  # Append the kept value, or else the one of that name, to the file.
  pack <- function(path, name = NULL, transfer = NULL) answering({
    is_kept <- !is.null(transfer) && exists(transfer, envir = kept, inherits = FALSE)
    place <- if (is_kept) kept else if (!is.null(name)) place_of(name)
    if (is.null(place)) {
      object(missing = "true", near = if (is.null(name)) "[]" else listed(quoted(near_names(name))))
    } else {
      packed <- pack_from(if (is_kept) transfer else name, place, path)
      if (is_kept) drop(transfer)
      packed
    }
  })

  # Apart from the above, where R would take the value for shared from then on: see `variables`.
  pack_from <- function(name, place, path) {
    value <- get(name, envir = place, inherits = FALSE)
    size <- write_value(value, path)
    object(size = numbered(size), type = quoted(class(value)[1L]), text = quoted(describe(value)))
  }

  write_value <- function(value, path) {
    before <- file.size(path)
    if (is.na(before)) before <- 0
    file <- file(path, "ab") # what stands before it stays
    open <- TRUE
    on.exit(if (open) close(file))
    serialize(value, file, ascii = FALSE, xdr = FALSE, version = 3L)
    end <- seek(file, rw = "write")
    close(file)
    open <- FALSE
    written <- file.size(path)
    if (is.finite(written) && written < end) {
      stop("there is no room for it: ", in_units(end))
    }
    written - before
  }

  # Give the value in the file a name.
  bind <- function(path, name, overwrite = TRUE) answering({
    old <- if (exists(name, envir = globalenv(), inherits = FALSE)) describe_binding(name)
    if (!is.null(old) && !isTRUE(overwrite)) {
      object(exists = quoted(old))
    } else {
      text <- read_value(path, name)
      object(name = quoted(name), text = quoted(text), replaced = if (is.null(old)) "null" else quoted(old))
    }
  })

  read_value <- function(path, name) {
    file <- file(path, "rb")
    on.exit(close(file))
    value <- unserialize(file)
    assign(name, value, envir = globalenv())
    describe(value)
  }

  describe_found <- function(name, place) {
    if (identical(place, globalenv())) describe_binding(name) else describe(get(name, envir = place))
  }

  # What a variable is; promises are not forced.
  describe_binding <- function(name) {
    value <- read_binding(name, globalenv())
    if (identical(value, unforced)) {
      "promise"
    } else if (identical(value, computed)) {
      "active binding"
    } else {
      describe(value)
    }
  }

  # Whether there is such an object: a variable, or data of an attached package.
  find <- function(name) answering({
    place <- place_of(name)
    found <- !is.null(place) && (identical(place, globalenv()) || !is_function_name(name))
    object(found = truth(found), text = quoted(if (found) describe_found(name, place) else ""))
  })

  remove <- function(name) answering({
    if (!exists(name, envir = globalenv(), inherits = FALSE)) {
      return(object(missing = "true", near = listed(quoted(near_names(name)))))
    }
    rm(list = name, envir = globalenv())
    object(removed = "true")
  })

  # At most three names of the user's that look like it.
  near_names <- function(name) {
    names <- ls(globalenv())
    names <- names[nzchar(names)]
    distance <- if (length(names)) utils::adist(name, names, ignore.case = TRUE)[1L, ] else numeric()
    near <- which(distance <= max(1, nchar(name) %/% 3))
    utils::head(names[near[order(distance[near])]], 3L)
  }

  # --- plots ------------------------------------------------------------------------------------
  #
  # Plots are drawn on a PDF device that writes to nowhere and records. A page is rendered when it
  # is finished (the next one begins, or its device closes) or when a command has ended. It keeps
  # its id: drawn upon in a later command, it comes again as an update.

  if (!exists("sheets", inherits = FALSE)) {
    sheets <- list() # by the number of the device: the page that is on it now
    rendered <- list() # what is to be shown next
    last_page <- 0L
    drawing <- FALSE # whether it is we who draw
  }

  open_device <- function(width, height) {
    grDevices::pdf(NULL, width = width, height = height)
    grDevices::dev.control("enable")
    sheets[[as.character(grDevices::dev.cur())]] <<- new_sheet()
    if (!is.null(pipes) && Sys.getpid() == process) tell_worker(object(kind = quoted("drawing")))
    invisible()
  }

  # `is_over`: what is still on the device was shown as a finished page, and the next one has not begun.
  new_sheet <- function(is_over = FALSE) list(number = 0L, steps = 0L, is_over = is_over)

  is_ours <- function(device) {
    number <- as.character(device)
    if (is.null(sheets[[number]])) {
      return(FALSE)
    }
    devices <- get(".Devices", envir = baseenv())
    name <- if (device <= length(devices)) devices[[device]] else ""
    file <- attr(name, "filepath")
    ours <- identical(as.character(name), "pdf") && (is.null(file) || !nzchar(file))
    if (!ours) sheets[[number]] <<- NULL
    ours
  }

  # The new and the changed plots: files that the caller removes. "" when there are none. At a
  # question R may be between two pages.
  plots <- function(at_question = FALSE) answering({
    for (device in as.integer(names(sheets))) {
      if (!(at_question && sheets[[as.character(device)]]$is_over)) save_page(device, FALSE)
    }
    taken <- rendered
    rendered <<- list()
    if (length(taken)) object(plots = listed(unlist(taken))) else ""
  })

  # The page on that device, if something was drawn since it was last shown, goes to `rendered`.
  save_page <- function(device, is_finished) {
    if (drawing || !is_ours(device)) {
      return(invisible())
    }
    drawing <<- TRUE
    current <- grDevices::dev.cur()
    on.exit({
      drawing <<- FALSE
      if (grDevices::dev.cur() != current) grDevices::dev.set(current)
    })
    sheet <- sheets[[as.character(device)]]
    if (device != current) grDevices::dev.set(device)
    page <- tryCatch(grDevices::recordPlot(), error = function(problem) NULL)
    steps <- length(page[[1L]])
    if (has_content(page, if (steps < sheet$steps) 0L else sheet$steps)) {
      is_update <- sheet$number > 0L
      if (!is_update) sheet$number <- last_page <<- last_page + 1L
      rendered[[length(rendered) + 1L]] <<- shown(page, sheet$number, is_update)
    }
    sheet$steps <- steps
    sheets[[as.character(device)]] <<- if (is_finished) new_sheet(is_over = TRUE) else sheet
    invisible()
  }

  invisible_steps <- c(
    "C_par", "C_layout", "C_clip", "C_plot_window", "C_strWidth", "C_strHeight", "palette", "palette2",
    "gridDirty", "setGPar", "setviewport", "upviewport", "downviewport", "initGPar", "initViewport"
  )

  # Whether one of the steps after those that are known leaves something to be seen.
  has_content <- function(page, known) {
    steps <- page[[1L]]
    for (step in if (known) utils::tail(as.list(steps), -known) else steps) {
      name <- tryCatch(step[[2L]][[1L]][["name"]], error = function(problem) NULL)
      if (is.null(name) || !name %in% invisible_steps) {
        return(TRUE)
      }
    }
    FALSE
  }

  shown <- function(page, number, is_update) {
    common <- c(
      id = quoted(paste0("plot-", number)), update = truth(is_update),
      text = quoted(paste0("<plot ", number, ">"))
    )
    tryCatch(
      {
        size <- grDevices::dev.size("in")
        drawn <- suppressWarnings(render(page, size))
        object(c(common,
          path = quoted(drawn$path), mime = quoted(drawn$mime),
          width = numbered(size[1L]), height = numbered(size[2L])
        ))
      },
      error = function(problem) {
        object(c(common, failed = quoted(paste("the plot could not be drawn:", words_of(problem)))))
      }
    )
  }

  dots_per_inch <- 100
  large <- 5e6 # bytes of a recorded plot from which on its lines are not smoothed, which takes half of the time

  render <- function(page, size) {
    force(page) # else it would be recorded from the device that is opened now
    path <- tempfile("plot-", tempdir(check = TRUE))
    mime <- open_renderer(path, size, utils::object.size(page) > large)
    device <- grDevices::dev.cur()
    on.exit({
      if (device %in% grDevices::dev.list()) grDevices::dev.off(device)
      unlink(path)
    })
    grDevices::replayPlot(page)
    grDevices::dev.off(device)
    if (!isTRUE(file.size(path) > 0)) {
      stop("nothing was drawn")
    }
    on.exit()
    list(path = path, mime = mime)
  }

  open_renderer <- function(path, size, is_large) {
    smoothing <- if (is_large) "none" else "default"
    pixels <- pmax(1, round(size * dots_per_inch))
    if (capabilities("cairo")) {
      grDevices::png(
        path, pixels[1L], pixels[2L],
        res = dots_per_inch, type = "cairo", bg = "white", antialias = smoothing
      )
    } else if (nzchar(system.file(package = "ragg"))) {
      getExportedValue("ragg", "agg_png")(path, pixels[1L], pixels[2L], res = dots_per_inch)
    } else {
      grDevices::pdf(path, size[1L], size[2L], onefile = TRUE)
      return("application/pdf")
    }
    "image/png"
  }

  # Hooks: a page is about to be begun; a device is about to be closed. What fails here is not the user's error.
  before_base_page <- function() {
    device <- grDevices::dev.cur()
    attempting(if (!drawing && is_ours(device) && isTRUE(graphics::par("page"))) {
      save_page(device, TRUE)
      before_asking()
    })
  }

  before_grid_page <- function() {
    attempting({
      save_page(grDevices::dev.cur(), TRUE)
      before_asking()
    })
  }

  after_page <- function() {
    device <- as.character(grDevices::dev.cur())
    if (!drawing && !is.null(sheets[[device]])) sheets[[device]]$is_over <<- FALSE
  }

  # R's C code is going to ask before it shows the next page.
  before_asking <- function() {
    if (!drawing && is_ours(grDevices::dev.cur()) && grDevices::devAskNewPage()) show_at_question()
  }

  # R is about to ask something, and who answers should see what was drawn. (The embedded worker does it itself.)
  show_at_question <- function() {
    if (is.null(pipes) || drawing || Sys.getpid() != process) {
      return(invisible())
    }
    suspendInterrupts({
      found <- if (length(sheets) + length(rendered)) plots(TRUE) else ""
      if (nzchar(found)) {
        tell_worker(object(kind = quoted("plots"), data = found))
        wait_for_worker()
      }
    })
    invisible()
  }

  before_close <- function(device) {
    attempting(save_page(device, TRUE))
    if (!drawing) sheets[[as.character(device)]] <<- NULL
  }

  # --- in place of a terminal and a screen --------------------------------------------------------

  exit <- NULL # the status that `q()` was called with in this command

  # `q()` ends the command and never the session: the worker looks at `exit`.
  leave <- function(save = "default", status = 0, runLast = TRUE) {
    if (Sys.getpid() != process) {
      return(originals$quit(save, status, runLast))
    }
    status <- suppressWarnings(as.integer(status))[1L]
    exit <<- if (is.na(status)) 0L else status
    invokeRestart("abort")
  }

  # What stands in the place of `quit`; who prints that reads one plain call.
  plain_quit <- local(
    function(save = "default", status = 0, runLast = TRUE) end_command(save, status, runLast),
    list2env(list(end_command = leave), parent = baseenv())
  )
  attr(plain_quit, "srcref") <- NULL

  # An interrupt that came while a line was read is acted upon at once.
  ask_line <- function(prompt = "") {
    before_reading()
    value <- originals$readline(prompt)
    after_reading()
    value
  }

  before_reading <- function() {
    show_at_question()
    announce(TRUE)
  }

  after_reading <- function() {
    announce(FALSE)
    Sys.sleep(0)
  }

  # That function, with a look for an interrupt after each reading of a line in C.
  checking <- function(original) {
    changed <- original
    body(changed) <- check_after_reading(body(original))
    environment(changed) <- environment(original)
    changed
  }

  check_after_reading <- function(code) {
    if (!is.call(code)) {
      return(code)
    }
    reads <- identical(code[[1L]], quote(.Internal)) && identical(code[[2L]][[1L]], quote(scan))
    if (reads || length(code) > 1L && identical(code[[2L]], quote(C_menu))) {
      # Not as an argument of ours: warnings of `scan` would name that.
      read <- call("<-", quote(.value), code)
      return(call("{", as.call(list(before_reading)), read, as.call(list(after_reading)), quote(.value)))
    }
    for (place in seq_along(code)) {
      if (is.call(code[[place]])) code[[place]] <- check_after_reading(code[[place]])
    }
    code
  }

  # That function, with a call of ours before all else.
  beginning <- function(original, call) {
    changed <- original
    body(changed) <- as.call(list(quote(`{`), call, body(original)))
    environment(changed) <- environment(original)
    changed
  }

  show_files <- function(files, header = "", title = "", delete.file = FALSE) {
    for (place in seq_along(files)) {
      if (isTRUE(nzchar(header[place]))) cat(header[place], "\n\n", sep = "")
      text <- tryCatch(readLines(files[place], warn = FALSE), error = function(problem) {
        paste0("the file `", files[place], "` cannot be read")
      })
      writeLines(gsub("[^\n]\b", "", text))
      cat("\n")
    }
    if (isTRUE(delete.file)) unlink(files)
    invisible()
  }

  show_address <- function(url, ...) {
    cat(url, "\n", sep = "")
    invisible()
  }

  refuse_to_edit <- function(...) {
    stop("there is no editor here; copy the file, edit it where you are, and copy it back", call. = FALSE)
  }

  refuse_history <- function(...) {
    stop("no history is kept here; Up and Ctrl-R at the prompt search what was typed", call. = FALSE)
  }

  # In place of a window with a table.
  show_table <- function(x, title) {
    extent <- dim(x)
    count <- if (is.null(extent)) length(x) else extent[1L]
    print(utils::head(x, rows_shown))
    if (count > rows_shown) cat("(", rows_shown, " of ", count, if (!is.null(extent)) " rows", ")\n", sep = "")
    invisible()
  }

  rows_shown <- 20L

  # That function, to be called as the other.
  with_formals <- function(changed, original) {
    formals(changed) <- formals(original)
    changed
  }

  # Put our function in the place of theirs, wherever that package shows it.
  replace <- function(name, package, replacement) {
    places <- if (package == "base") list(baseenv()) else list(asNamespace(package))
    attached <- match(paste0("package:", package), search())
    if (package != "base" && !is.na(attached)) places <- c(places, as.environment(attached))
    for (place in places) {
      was_locked <- bindingIsLocked(name, place)
      if (was_locked) unlockBinding(name, place)
      assign(name, replacement, envir = place)
      if (was_locked) lockBinding(name, place)
    }
  }

  # --- R at the end of pipes ----------------------------------------------------------------------
  #
  # Used by `r_pipe.py` alone, which types two short lines and no others: one calls `turn`, which
  # does what the file `request` says; the other is a name bound to a promise, in which the user's
  # expression is evaluated. To force a promise makes no frame and leaves visibility alone: so all is
  # as if the expression itself had been typed, however long it is.

  # `nonce` begins the two names and our prompt. `announces`: reading a line is announced, since the
  # worker cannot see it. `variables`: what the user is to find in his environment.
  open_pipes <- function(folder, nonce, announces, variables) {
    pipes <<- new.env(parent = environment())
    pipes$announces <- announces
    pipes$folder <- folder
    pipes$nonce <- nonce
    for (name in names(variables)) set_variable(name, variables[[name]])
    pipes$variables <- Sys.getenv(c("COLUMNS", "R_CLI_NUM_COLORS"), unset = NA)
    assign(paste0(nonce, "t"), turn, envir = .AutoloadEnv)
    hello <- object(
      kind = quoted("hello"), prompt = quoted(getOption("prompt")), tempdir = quoted(tempdir()),
      errors = listed(quoted(c(translated("Error: "), translated("Error in ")))),
      version = quoted(paste(R.version$major, R.version$minor, sep = "."))
    )
    set_prompt()
    tell_worker(hello)
    last_value()
  }

  set_variable <- function(name, value) {
    if (is.na(value)) Sys.unsetenv(name) else do.call(Sys.setenv, structure(list(value), names = name))
  }

  # R, its packages and the programs that it starts learn the submitter's terminal.
  set_terminal <- function(width, color) {
    if (width > 0L) options(width = max(10L, min(width, 10000L)))
    theirs <- pipes$variables
    set_variable("COLUMNS", if (width > 0L) as.character(width) else theirs[["COLUMNS"]])
    if (!nzchar(Sys.getenv("NO_COLOR"))) {
      wanted <- theirs[["R_CLI_NUM_COLORS"]]
      set_variable("R_CLI_NUM_COLORS", if (color && is.na(wanted)) "256" else wanted)
    }
    "{}"
  }

  # Nothing is typed that would go on in a second line: `continue` is the user's own.
  set_prompt <- function() options(prompt = paste0(pipes$nonce, "> "))

  # Each message opens and closes: so the user finds no connections of ours, and closes none.
  tell_worker <- function(text) {
    channel <- fifo(file.path(pipes$folder, "tell"), "wb", blocking = TRUE)
    on.exit(close(channel))
    writeLines(text, channel, useBytes = TRUE)
  }

  announce <- function(is_reading) {
    if (!is.null(pipes) && pipes$announces && Sys.getpid() == process) {
      tell_worker(object(kind = quoted("reading"), now = truth(is_reading)))
    }
  }

  wait_for_worker <- function() {
    channel <- fifo(file.path(pipes$folder, "go"), "rb", blocking = TRUE)
    on.exit(close(channel))
    readBin(channel, "raw", 1L)
  }

  turn <- function() {
    suspendInterrupts({
      forget_value()
      set_prompt()
      answer <- answering(eval(parse(file.path(pipes$folder, "request"), encoding = "UTF-8"), pipes))
      tell_worker(object(kind = quoted("answer"), data = if (nzchar(answer)) answer else "{}"))
    })
    last_value()
  }

  # Read the code of a run; `timed` also gives the source of each expression.
  begin <- function(filename = "", file = NULL, keep = NULL, timed = FALSE) {
    lines <- readLines(file.path(pipes$folder, "code"), encoding = "UTF-8", warn = FALSE)
    with_source <- timed || isTRUE(getOption("keep.source"))
    code <- tryCatch(
      if (with_source) {
        parse(text = lines, keep.source = TRUE, srcfile = srcfilecopy(filename, lines), encoding = "UTF-8")
      } else {
        parse(text = lines, keep.source = FALSE, encoding = "UTF-8")
      },
      error = function(problem) NULL
    )
    if (is.null(code)) {
      return(check(paste(lines, collapse = "\n"), file))
    }
    texts <- if (timed) source_of(code) else character()
    if (!is.null(keep)) {
      code <- keeping(keep, code)
    }
    pipes$code <- code
    started <- state()
    if (length(code)) prepare(1L)
    object(count = numbered(length(code)), texts = listed(quoted(texts)), state = started)
  }

  source_of <- function(code) {
    vapply(attr(code, "srcref"), function(place) paste(as.character(place), collapse = "\n"), "")
  }

  # Bind the name to the promise of that expression.
  prepare <- function(number) {
    exit <<- NULL
    mark_traceback()
    eval(call("delayedAssign", "given", pipes$code[[number]], globalenv(), pipes))
    bind_value()
  }

  # How the last expression ended, and the next one made ready.
  step <- function(number) {
    ended <- state()
    prepare(number)
    object(state = ended)
  }

  bind_value <- function() {
    evaluate <- quote({
      held <- .Internal(withVisible(given))
      is_evaluated(held$visible)
      if (held$visible) held$value else invisible(held$value)
    })
    eval(call("delayedAssign", paste0(pipes$nonce, "v"), evaluate, pipes, .AutoloadEnv))
  }

  # Between evaluating and printing: what comes from now on is the value's text.
  is_evaluated <- function(is_visible) {
    suspendInterrupts({
      set_prompt()
      tell_worker(object(kind = quoted("value"), visible = truth(is_visible)))
      if (is_visible) wait_for_worker()
    })
  }

  # A value of which a promise has hold would be copied when it is changed.
  forget_value <- function() {
    pipes$held <- pipes$given <- NULL
    assign(paste0(pipes$nonce, "v"), NULL, envir = .AutoloadEnv)
  }

  # R replaces `.Traceback` at each error and interrupt: one that bears our mark is an old one.
  mark_traceback <- function() {
    calls <- get0(".Traceback", envir = baseenv(), inherits = FALSE)
    pipes$had_traceback <- exists(".Traceback", envir = baseenv(), inherits = FALSE)
    if (pipes$had_traceback && is.null(attr(calls, "remoter"))) {
      if (is.null(calls)) calls <- list()
      attr(calls, "remoter") <- TRUE
      assign(".Traceback", calls, envir = baseenv())
    }
  }

  # How the last expression ended.
  state <- function() {
    exists_now <- exists(".Traceback", envir = baseenv(), inherits = FALSE)
    calls <- get0(".Traceback", envir = baseenv(), inherits = FALSE)
    texts <- vapply(as.list(calls), function(call) paste(call, collapse = "\n"), "")
    object(
      message = quoted(geterrmessage()),
      jumped = truth(exists_now && is.null(attr(calls, "remoter"))),
      traceback = listed(quoted(texts)),
      exit = if (is.null(exit)) "null" else numbered(exit),
      sinks = numbered(sink.number()),
      directory = quoted(getwd()),
      time = listed(numbered(proc.time()[1:3]))
    )
  }

  # How the last expression ended; and whether there may be plots.
  finish <- function() {
    pipes$code <- NULL
    object(state = state(), plots = truth(length(sheets) + length(rendered) > 0L))
  }

  # Runs once, also when this file is read again.
  if (!exists("originals", inherits = FALSE)) {
    process <- Sys.getpid()
    pipes <- NULL
    originals <- list(
      quit = base::quit, readline = base::readline, scan = base::scan,
      menu = utils::menu, dev.off = grDevices::dev.off
    )
    for (name in c("quit", "q")) replace(name, "base", plain_quit)
    replace("readline", "base", ask_line)
    replace("scan", "base", checking(originals$scan))
    replace("menu", "utils", checking(originals$menu))
    for (name in c("history", "savehistory", "loadhistory")) {
      replace(name, "utils", with_formals(refuse_history, getExportedValue("utils", name)))
    }
    replace("View", "utils", show_table)
    replace(
      "dev.off", "grDevices",
      beginning(originals$dev.off, as.call(list(function(device) before_close(device), quote(which))))
    )
    options(
      pager = function(...) show_files(...),
      browser = function(...) show_address(...),
      editor = function(...) refuse_to_edit(...),
      menu.graphics = FALSE,
      device = function(width = 7, height = 7, ...) open_device(width, height)
    )
    setHook("before.plot.new", function(...) before_base_page())
    setHook("before.grid.newpage", function(...) before_grid_page())
    for (name in c("plot.new", "grid.newpage")) setHook(name, function(...) after_page())
  }

  invisible(environment())
})
