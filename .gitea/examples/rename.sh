#!/usr/bin/env bash
# Writes the SYNC_ variables of the shell into a copy of the workflow: rename.sh WORKFLOW
set -euo pipefail
pin=${SYNC_PIN_PATH:-}
for name in "$SYNC_CANONICAL_SERVER" "$SYNC_CANONICAL_REPO" "$SYNC_CANONICAL_PATH" "$SYNC_CANONICAL_REF" "$SYNC_COPY_PATH" "$pin"; do
  # Others would need quotes in YAML, or are patterns in a list of paths.
  if [[ $name == ./* || $name == *[!A-Za-z0-9._/:-]* ]]; then
    echo "\"$name\" has other characters than letters, digits and ._-/: or begins with ./" >&2
    exit 1
  fi
done
sed -e "s|'workspace-server/internal/providers/providers.yaml'|'$SYNC_COPY_PATH'|" \
  -e "s|'workspace-server/internal/providers/sync_canonical_test.go'|'$pin'|" \
  -e "s|SYNC_CANONICAL_SERVER:.*|SYNC_CANONICAL_SERVER: $SYNC_CANONICAL_SERVER|" \
  -e "s|SYNC_CANONICAL_REPO:.*|SYNC_CANONICAL_REPO: $SYNC_CANONICAL_REPO|" \
  -e "s|SYNC_CANONICAL_PATH:.*|SYNC_CANONICAL_PATH: $SYNC_CANONICAL_PATH|" \
  -e "s|SYNC_CANONICAL_REF:.*|SYNC_CANONICAL_REF: $SYNC_CANONICAL_REF|" \
  -e "s|SYNC_COPY_PATH:.*|SYNC_COPY_PATH: $SYNC_COPY_PATH|" \
  -e "s|SYNC_PIN_PATH:.*|SYNC_PIN_PATH: $pin|" \
  -e "s|name: Compare synced .*|name: Compare ${SYNC_COPY_PATH##*/} against its canonical file|" \
  -e "/# bp-required:/d" -e "/- ''/d" -e "/SYNC_PIN_PATH: \$/d" "$1" > "$1.new"
mv "$1.new" "$1"
