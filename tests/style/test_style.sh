#!/usr/bin/env bash
# test_style.sh - the rules of check.sh, run with the other tests
exec "$(dirname "$0")/check.sh"
