# The same small piece of work as tour.py: how often do the primes end in 1, 3, 7, 9, and what follows what?
#
# Run it through a session and watch it as it goes: `remoter batch --start examples/tour.R`; on
# another machine: `remoter batch ssh://big examples/tour.R`.
# The values of the lines that are only an expression are shown, as at a prompt.

limit <- 3e6

cat(sprintf("%s, process %d on %s\n", R.version.string, Sys.getpid(), Sys.info()[["nodename"]]))

# All primes below the limit, by the sieve of Eratosthenes.
primes <- function(limit) {
    sieve <- rep(TRUE, limit - 1)
    sieve[1] <- FALSE
    for (number in 2:floor(sqrt(limit - 1))) {
        if (sieve[number]) sieve[seq(number * number, limit - 1, by = number)] <- FALSE
    }
    which(sieve)
}

started <- Sys.time()
found <- primes(limit)
cat(sprintf("%s primes below %s, the last one %s\n", format(length(found), big.mark = ","),
            format(limit, big.mark = ",", scientific = FALSE), format(tail(found, 1), big.mark = ",")))

# Each line appears as it is printed, not at the end.
digits <- c(1, 3, 7, 9)
pairs <- matrix(0L, 4, 4, dimnames = list(before = digits, after = digits))
step <- length(found) %/% 8
for (part in 1:8) {
    piece <- found[((part - 1) * step + 1):min(part * step + 1, length(found))] %% 10
    pairs <- pairs + table(factor(head(piece, -1), digits), factor(tail(piece, -1), digits))
    cat(sprintf("  %-8s  pairs counted: %7s\n", strrep("#", part), format(sum(pairs), big.mark = ",")))
    Sys.sleep(0.25)
}

# The last digit of a prime, and of the one after it, in percent.
round(100 * prop.table(pairs, 1), 1)

# Chance alone would give 25 in each place, but a prime avoids the digit of the one before it.
rarest <- which(pairs == min(pairs), arr.ind = TRUE)
sprintf("rarest: %d after %d, %d times", digits[rarest[2]], digits[rarest[1]], min(pairs))

tryCatch(primes(-1), error = function(error) cat("an error, handled:", conditionMessage(error), "\n"))

cat(sprintf("done after %.1f s; `found` and `pairs` are still there: remoter client\n",
            as.numeric(Sys.time() - started, units = "secs")))
