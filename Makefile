# fedlora: make help lists the targets. One file; wildcards over src/*/*.c and tests/*/test_*.c.
SHELL := /bin/bash
CC := mpicc
ARCH ?= native
OPT ?= -O3
B ?= build
PREFIX ?= /usr/local
DESTDIR ?=

# asked once, and only when something is compiled: `make deps` had its turn by then
PKG_CFLAGS = $(eval PKG_CFLAGS := $$(shell jobs/install/flags.sh cflags))$(PKG_CFLAGS)
PKG_LIBS = $(eval PKG_LIBS := $$(shell jobs/install/flags.sh libs))$(PKG_LIBS)

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
CFLAGS ?= $(OPT) -g -march=$(ARCH)
# behind the user's CFLAGS: products and sums are rounded as written, by every compiler
NUMERICS := -fno-math-errno -fno-trapping-math -ffp-contract=off
ifneq (,$(filter -Ofast -ffast-math -funsafe-math-optimizations -fassociative-math,$(CFLAGS) $(OPT)))
$(error fast-math reorders sums, and then the same run has other bits on another number of ranks; leave it out)
endif
ALL_CFLAGS = -std=c11 -D_GNU_SOURCE -Iinclude $(WARN) $(CPPFLAGS) $(CFLAGS) $(NUMERICS) $(PKG_CFLAGS)
LIBS = $(LDFLAGS) $(PKG_LIBS) -lrt -lm -pthread

SRC := $(wildcard src/*/*.c)
LIB_SRC := $(filter-out src/app/main.c,$(SRC))
OBJ := $(LIB_SRC:%.c=$(B)/%.o)
DOBJ := $(patsubst %.c,$(B)/double/%.o,$(wildcard src/base/*.c src/la/*.c src/adapter/*.c src/nn/*.c src/deck/*.c src/comm/*.c))

TEST_SRC := $(filter-out tests/grad/%,$(wildcard tests/*/test_*.c))
TEST_BIN := $(TEST_SRC:%.c=$(B)/%)
GRAD_SRC := $(wildcard tests/grad/test_*.c)
GRAD_BIN := $(GRAD_SRC:%.c=$(B)/%)

.PHONY: all help deps build quickstart check check-long check-style bench format man install uninstall dist clean reference fuzz tests-build
all: $(B)/fedlora ## build the program (default)

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

deps: ## install what is missing (apt-get as root or by sudo), or say what to load
	@MPICC='$(CC)' jobs/install/deps.sh

$(B)/fedlora: $(B)/src/app/main.o $(B)/libfedlora.a
	$(CC) $(CFLAGS) -o $@ $^ $(LIBS)
$(B)/libfedlora.a: $(OBJ)
	@rm -f $@
	ar rcs $@ $^
$(B)/libfedlora-double.a: $(DOBJ)
	@rm -f $@
	ar rcs $@ $^
# a native build remembers its CPU
ifeq ($(ARCH),native)
$(B)/src/app/placement.o: ALL_CFLAGS += -DFL_BUILD_CPU='"$(shell sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"'
endif
# the revision that --version and used.yaml name; a tar file of make dist brings it, and git is asked about this tree only
$(B)/src/app/start.o: ALL_CFLAGS += -DFL_GIT='"$(shell cat jobs/install/REVISION 2>/dev/null || { [ -e .git ] && git describe --always --dirty 2>/dev/null; } || echo unknown)"'
$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<
$(B)/double/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -DFL_REAL_DOUBLE -MMD -MP -c -o $@ $<

$(TEST_BIN): $(B)/%: %.c $(B)/libfedlora.a $(wildcard tests/*.h tests/*/*.h)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -Itests -o $@ $< $(B)/libfedlora.a -lcmocka $(LIBS)
$(GRAD_BIN): $(B)/%: %.c $(B)/libfedlora-double.a $(wildcard tests/*.h tests/*/*.h)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -DFL_REAL_DOUBLE -Itests -o $@ $< $(B)/libfedlora-double.a -lcmocka $(LIBS)

tests-build: $(B)/fedlora $(TEST_BIN) $(GRAD_BIN)

check: ## install what is missing, build, run every test; last line "N passed, M failed, K skipped"
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory -j$$(nproc) tests-build
	@B=$(B) tests/run.sh

check-long: ## the long tests too
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory -j$$(nproc) tests-build
	@B=$(B) FEDLORA_LONG=1 tests/run.sh

check-style: ## layers, formatting, completeness of methods
	@tests/style/check.sh

quickstart: ## install, build, make a small base, run a federation on 2 ranks
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory -j$$(nproc) all
	@B=$(B) jobs/quickstart.sh

bench: all ## micro-benchmarks, each with its limit beside it
	$(B)/fedlora bench train reduce svd checkpoint -o $(B)

format: ## clang-format every C source (headers are laid out by hand, as tables)
	clang-format -i $$(git ls-files '*.c')

reference: all ## write inputs/REFERENCE.md and inputs/METHODS.md from the program
	$(B)/fedlora deck --reference > inputs/REFERENCE.md
	$(B)/fedlora methods --reference > inputs/METHODS.md

fuzz: ## build the fuzzers (clang, ASan, UBSan) and run each for FUZZ_SECONDS (default 60)
	@B=$(B) tests/fuzz/run.sh

man: all ## write the page fedlora(1) from the program and jobs/install/fedlora.1.in
	jobs/install/man.sh $(B)/fedlora > $(B)/fedlora.1
	mv $(B)/fedlora.1 jobs/install/fedlora.1

install: all ## copy program, decks, job scripts, man page to PREFIX (/usr/local), below DESTDIR if given
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' B='$(B)' jobs/install/install.sh install

uninstall: ## undo install, with the same PREFIX and DESTDIR
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' jobs/install/install.sh uninstall

dist: ## fedlora-VERSION.tar.gz in the build folder
	@B='$(B)' jobs/install/dist.sh

clean: ## remove what was built
	rm -rf $(B)

-include $(shell find $(B) -name '*.d' 2>/dev/null)
