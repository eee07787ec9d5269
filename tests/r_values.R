# Values of all kinds, for tests: each is written to files as R serializes it; then Python reads and writes them,
# and what it wrote is compared with what was there.

latin1 <- function(...) { x <- c(...); Encoding(x) <- "latin1"; x }
as_bytes <- function(...) { x <- c(...); Encoding(x) <- "bytes"; x }
compiled <- compiler::cmpfun(function(x) { for (i in 1:3) x <- x + 1; switch(x, a = 1, b = compiled(x)); x[2] <- 3; x })
setClass("Point", representation(x = "numeric"))
setClass("Numbers", contains = "numeric")

values <- expression(
    TRUE, FALSE, NA, 1L, -5L, NA_integer_, 1.5, 0, -0, 1e300, NA_real_, NaN, Inf, -Inf, 1i,
    complex(real=NA,imaginary=1), NA_complex_, complex(real=NaN,imaginary=Inf), "a", "", NA_character_,
    "\u00e9\u4e2d\U1F600", as.raw(5), raw(0), as.raw(0:255), logical(0), integer(0), double(0), complex(0),
    character(0), list(), c(TRUE,FALSE), c(TRUE,NA), 1:10, c(1L,NA,3L), c(1,2,3), c(1,NA,NaN,Inf,-Inf),
    c(1+2i,NA), c("a","b"), c("a",NA,""), letters, seq(1,10,by=0.5), as.numeric(1:20), 10:1,
    as.character(1:100),
    as.character(c(1.5,2,1e5,1e15,1e-5,123456.7,0.1+0.2,NA,Inf,100000,123456,1e5+0.1,TRUE)), sort(c(3,1,2)),
    sort(c("b","a")), rev(list(1,2)), c(a=1,b=2), c(a=1L), c(a="x",b=NA), c(a=TRUE,b=NA), c(a=1L,b=NA),
    c(1,b=2), setNames(1:3,c("a",NA,"a")), setNames(1:2,c("1","2")), c(a=1i), c(a=as.raw(1)),
    setNames(character(0),character(0)), matrix(1:6,2), matrix(c(1.5,2,3,4),2),
    matrix(c(TRUE,NA,FALSE,TRUE),2), matrix(c(1L,NA,3L,4L),2), matrix(letters[1:6],2),
    matrix(1:4,2,dimnames=list(c("a","b"),c("x","y"))), matrix(1:4,2,dimnames=list(NULL,c("x","y"))),
    matrix(c(1L,NA),1,dimnames=list(r="a",c=c("x","y"))), array(1:24,c(2,3,4)), array(1:3,3), matrix(0,0,3),
    matrix(as.raw(1:4),2), matrix(list(1,"a",NULL,2L),2), matrix(1i,1,1), array(0,c(2,0,2)),
    table(c("a","b","a")), table(mtcars$cyl,mtcars$gear), diag(3),
    matrix(letters[1:4],2,dimnames=list(NULL,c("x","y"))), list(1,2), list(1,"a",TRUE), list(a=1,b="x"),
    list(a=NULL), list(NULL,1), list(a=list(b=list(c=1:3))), list(a=1,2), list(a=1,a=2),
    setNames(list(),character(0)), setNames(list(1,2),c("a",NA)), structure(list(a=1),class="foo"),
    structure(list(1,2),class="bar"), structure(list(a=1),names="a",extra=1:3), list("a","b"),
    list(TRUE,FALSE), list(list(),list(list())), list(1:3,letters), list(a=mtcars,b=list(iris,1)),
    factor(c("a","b",NA,"a")), factor("a"), factor(character(0)),
    factor(c("lo","hi"),levels=c("lo","hi"),ordered=TRUE), addNA(factor(c("a",NA))), factor(c(3,1,2)),
    structure(factor(c("a","b")),contrasts="contr.sum"), setNames(factor(c("a","b")),c("x","y")),
    factor(c("a","b"),levels=c("a","b","c")), interaction(c("a","b"),c("x","y")), cut(1:10,3),
    as.Date("2024-02-29"), as.Date(NA), as.Date(c("2024-01-01",NA)), as.Date(c("1900-01-01","2500-01-01")),
    structure(19000L,class="Date"), structure(c(19000L,NA),class="Date"), structure(19000.5,class="Date"),
    as.Date(character(0)), as.Date(Inf), seq(as.Date("2024-01-01"),by="month",length.out=5),
    setNames(as.Date(c("2024-01-01","2024-01-02")),c("a","b")), structure(c(19000.5,1),class="Date"),
    as.Date(c(-1e6,1e6),origin="1970-01-01"), as.Date(c(1e15,1),origin="1970-01-01"),
    as.POSIXct("2024-01-01 12:00:00",tz="UTC"), as.POSIXct("2024-01-01 12:00:00",tz="Europe/Berlin"),
    as.POSIXct("2024-07-01 12:00:00"), as.POSIXct(c("2024-01-01","2024-07-01",NA),tz="America/New_York"),
    as.POSIXct(1.1,origin="1970-01-01",tz="UTC"), as.POSIXct(NA), structure(1L,class=c("POSIXct","POSIXt")),
    structure(c(1L,NA),class=c("POSIXct","POSIXt"),tzone="UTC"), as.POSIXct(Inf,origin="1970-01-01"),
    as.POSIXct(c(1e-9,1/3),origin="1970-01-01",tz="UTC"), as.POSIXct(character(0),tz="UTC"),
    structure(1,class=c("POSIXct","POSIXt"),tzone=c("CET","CET","CEST")),
    structure(c(1,2),class=c("POSIXct","POSIXt"),tzone=c("CET","CET","CEST")),
    structure(c(1,2),class=c("POSIXct","POSIXt"),tzone="Mars/Base"),
    structure(1,class=c("POSIXct","POSIXt"),tzone=""), as.POSIXlt("2024-01-01 12:00:00",tz="UTC"),
    as.POSIXlt(c("2024-01-01","2024-07-01"),tz="Europe/Berlin"), as.POSIXct("1900-01-01",tz="Europe/Berlin"),
    setNames(as.POSIXct(c(1,2),origin="1970-01-01",tz="UTC"),c("a","b")),
    as.POSIXct(c(1e18,-1e18,1e300),origin="1970-01-01",tz="UTC"),
    as.POSIXct(253402300800+0:1,origin="1970-01-01",tz="UTC"),
    as.POSIXct(c(-62135596801,1),origin="1970-01-01",tz="UTC"), as.difftime(5,units="secs"),
    as.difftime(1.5,units="hours"), as.difftime(c(1,2,NA),units="days"), as.difftime(c(1L,2L),units="mins"),
    as.difftime(1/3,units="weeks"), as.difftime(NA_real_,units="secs"), as.difftime(3,units="days"),
    structure(1,class="difftime"), as.difftime(c(a=1,b=2),units="secs"), as.difftime(c(1e300,1),units="days"),
    mtcars, iris, iris[c(3,5),], mtcars[0,], data.frame(), data.frame(a=1:3)[,0],
    data.frame(a=1:3,b=letters[1:3]), data.frame(a=c(1L,NA),b=c(TRUE,NA),c=c("x",NA),d=c(NA,1.5),e=c(NaN,NA)),
    data.frame(a=1,a=2,check.names=FALSE),
    data.frame(f=factor(c("a","b",NA)),o=factor(c("x","y","x"),ordered=TRUE)),
    local({d<-data.frame(a=1:2);attr(d$a,"label")<-"my label";attr(d,"note")<-"hi";d}),
    data.frame(a=c(1+1i,NA),r=as.raw(1:2)), local({d<-data.frame(a=1:2);d$m<-matrix(1:4,2);d}),
    local({d<-data.frame(a=1:2);d$d<-data.frame(x=3:4,y=5:6);d}),
    structure(list(a=1:2),class="data.frame",row.names=c("x","y")),
    structure(list(a=1:2,b=1:3),class="data.frame",row.names=c(NA,-2L)),
    local({d<-data.frame(a=1:2);names(d)<-NA;d}), airquality, ToothGrowth, esoph, CO2, ChickWeight,
    structure(list(x=structure(c(1,2),class="units_like",units="m")),class="data.frame",row.names=1:2),
    structure(list(i=structure(c(5e-324,1e-323),class="integer64")),class="data.frame",row.names=1:2),
    data.frame(d=structure(c(1L,2L),class="Date"),e=structure(c(1.5,2),class="Date")),
    data.frame(n=c(a=1,b=2)), data.frame(x=I(c("a","b"))), data.frame(x=I(list(1,2))),
    expand.grid(a=1:2,b=c("x","y")), aggregate(len~supp,ToothGrowth,mean), as.data.frame(table(mtcars$cyl)),
    structure(list(t=as.POSIXlt(c("2024-01-01","2024-07-01"),tz="UTC")),class="data.frame",row.names=1:2),
    model.frame(mpg~log(wt),mtcars), y~x, quote(a+b), quote(x), expression(a,b+1), function(x,y=2) x+y, sum,
    `if`, globalenv(), baseenv(), emptyenv(), asNamespace("stats"), lm(mpg~wt,mtcars),
    glm(am~wt,binomial,mtcars), summary(lm(mpg~wt,mtcars)), ecdf(c(1,2,3)), splinefun(1:3,1:3),
    loess(mpg~wt,mtcars), t.test(extra~group,sleep), local({f<-function(x) x+1;for(i in 1:5) f(i);f}),
    compiler::cmpfun(function(x){y<-x;for(i in 1:10)y<-y+i;switch(y,a=1,b=2);repeat{break};y}),
    pairlist(a=1,2), as.name("na me"), local({setClass("P2",representation(x="numeric"));new("P2",x=1)}),
    local({setClass("N2",contains="numeric");new("N2",c(1,2))}), numeric_version("1.2.3"),
    ts(1:12,start=2020,frequency=12), ts(matrix(1:4,2)), as.hexmode(10), as.octmode(8L),
    structure(1:3,class="foo",x="y"), structure(c(1L,NA),class="foo"), structure("a",class="glue"),
    structure(1,label="x"), structure(TRUE,names="a",foo=1), structure(as.raw(1:3),class="blob"),
    structure(list(1),dim=1L), structure(c(5e-324,1e-323),class="integer64"), alist(a=,b=2),
    formals(function(x,...)1), body(function(x){x+1}), quote(function(x) x^2), simpleError("boom"),
    try(stop("x"),silent=TRUE), hist(c(1,2,3),plot=FALSE), density(c(1,2,3)), dist(matrix(1:6,3)),
    hclust(dist(matrix(c(1,5,2,8),4))), prcomp(mtcars), kmeans(c(1,2,10,11),2), rle(c(1,1,2)),
    strsplit(c("a b","c")," "), regmatches("a1b2",gregexpr("[0-9]","a1b2")), regexpr("a","ba"), as.roman(4),
    bitwAnd(5L,3L), Titanic, state.x77, letters[0], list(x=NULL,y=NULL), seq_len(0), numeric(3),
    vector("list",3), 1e5L, 2147483647L, -2147483647L, 2^31, 2^53+0, as.table(matrix(1:4,2)),
    array(1:8,c(2,2,2),dimnames=list(a=c("x","y"),NULL,c("p","q"))), array("a",c(1,1,1)),
    by(mtcars$mpg,mtcars$cyl,mean), tapply(mtcars$mpg,mtcars$cyl,mean), split(mtcars$mpg,mtcars$cyl),
    quantile(1:10), summary(c(1,2,3)), summary(iris), as.POSIXct(1700000000.1234567,origin="1970-01-01"),
    as.POSIXct(1700000000.1234567+0:3,origin="1970-01-01",tz="UTC"),
    data.frame(p=as.POSIXct(c(1/3,1700000000.1234567),origin="1970-01-01",tz="UTC")),
    structure(list(a=1:2,b=list(1,"x"),c=c("a",NA)),class=c("tbl_df","tbl","data.frame"),row.names=c(NA,-2L)),
    structure(list(a=list(NULL,1:3)),class=c("tbl_df","tbl","data.frame"),row.names=c(NA,-2L)),
    structure(list(g=1:2),class=c("grouped_df","tbl_df","tbl","data.frame"),row.names=c(NA,-2L),groups=data.frame(g=1:2)),
    latin1("\xe9t\xe9","a"), latin1("\xe9"), as_bytes("\xff\xfe","a"), as_bytes("\xff"),
    data.frame(x=as_bytes("\xff","a")), data.frame(x=latin1("\xe9","a")), c("\xff\xfe","a"), "\xff",
    data.frame(x=c("\xff","a")), local({x<-paste0(letters,1:5200);x[seq(1,5200,7)]<-NA;x[9]<-"\u00e9";x}),
    rep(c("123456789",NA,"",strrep("a",265)),300), rep(NA_character_,1000), strrep("xyz",c(1,1e5,3e5,2)),
    rep(latin1("\xe9","a"),200), rep(c(latin1("\xe9"),"\u4e2d",as_bytes("\xff"),"\xff",NA),100),
    rep(c("a","b"),2000), setNames(1:2000,paste0("n",1:2000)), Reduce(function(l,i) list(l),1:150,1),
    Reduce(function(l,i) list(a=l),1:1000,1), Reduce(function(l,i) call("+",l,1),1:3000,quote(x)),
    data.frame(x=sqrt(1:1000),y=1:1000,z=rep(letters[1:10],100),f=factor(rep(letters[1:10],100))),
    as.character(1:1000), as.data.frame(matrix(sqrt(1:300),3)),
    data.frame(t=structure(1:2,class=c("POSIXct","POSIXt"))),
    data.frame(t=structure(c(1L,NA),class=c("POSIXct","POSIXt"),label="x",tzone="CET")),
    data.frame(t=structure(1:2,class="difftime",units="mins",label="x")),
    data.frame(d=structure(c(900719925474099200,1,NA),class="Date",label="far")),
    data.frame(d=structure(c(NA,NaN,-Inf),class="Date"),t=structure(c(NaN,NA,1),class=c("POSIXct","POSIXt"))),
    local({d<-data.frame(a=structure(1:2,label="k"),b=3:4);names(d)<-as_bytes("\xff\xfe","b");d}),
    local({d<-data.frame(a=1:2);attr(d,"row.names")<-as_bytes("\xff\xfe","b");d}),
    compiled, new("Point", x = 1), new("Numbers", c(1, 2)), local({ e <- new.env(); list(e, e, quote(x)) }),
    local({ e <- new.env(); e$self <- e; e$x <- c(1L, 5L); list(a = e, b = list(e)) }),
    local({ f <- function(x) x + 1; for (i in 1:5) f(i); f })
)

folder <- commandArgs(TRUE)[1]
path <- function(i, kind) file.path(folder, sprintf("%d.%s", i, kind))
save_to <- function(value, file, ...) { to <- file(file, "wb"); serialize(value, to, ...); close(to) }
read_from <- function(file) { from <- file(file, "rb"); on.exit(close(from)); unserialize(from) }

for (i in seq_along(values)) {
    value <- eval(values[[i]], globalenv())
    save_to(value, path(i, "plain"), xdr = FALSE, version = 3)
    save_to(value, path(i, "big"), xdr = TRUE, version = 3)
    save_to(value, path(i, "old"), xdr = FALSE, version = 2)
}
cat("values", length(values), "\n")
invisible(readLines(file("stdin"), 1))

# An environment is another one each time that it is read: then what is written of both is compared.
for (i in seq_along(values)) for (kind in c("plain", "big", "old", "bare")) {
    given <- read_from(path(i, "plain"))
    came <- tryCatch(read_from(path(i, paste0(kind, ".back"))), error = conditionMessage)
    same <- identical(came, given, num.eq = FALSE, ignore.environment = TRUE, ignore.srcref = FALSE)
    if (!same && !identical(serialize(came, NULL), serialize(given, NULL)))
        cat("differs", kind, deparse(values[[i]], 60)[1], "\n")
}
cat("done\n")
