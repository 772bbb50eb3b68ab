#!/usr/bin/env bash
# test_aggregate.sh - fedlora aggregate as a user starts it: adapters that PEFT saved, lists and weights from files, what is refused, the same
# bytes on any number of ranks. What comes out is judged by methods/test_aggregate and interop/check_peft_set.py.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh
peft=tests/fixtures/peft
llamas=("$peft/llama-plain" "$peft/llama-patterns" "$peft/llama-named")

# ---- wrong use ----
refuse 2 "no adapters" "usage: fedlora aggregate --method NAME" aggregate --method flora -o "$T/no"
refuse 2 "no method" "--method is missing" aggregate -o "$T/no" "${llamas[@]}"
refuse 2 "an unknown method" "there is no method 'flor'" aggregate --method flor -o "$T/no" "${llamas[@]}"
refuse 2 "no folder for the result" "--out is missing" aggregate --method flora "${llamas[@]}"
refuse 2 "too few weights" "--weights: 2 numbers for 3 adapters" aggregate --method flora -o "$T/no" --weights 1,2 "${llamas[@]}"
refuse 2 "too many weights" "--weights: 4 numbers for 3 adapters" aggregate --method flora -o "$T/no" --weights 1,2,3,4 "${llamas[@]}"
refuse 2 "a weight that is none" "--weights: 'x2' is not a number" aggregate --method flora -o "$T/no" --weights 1,x2,3 "${llamas[@]}"
refuse 2 "a negative weight" "--weights: '-1' is not a number of at least 0" aggregate --method flora -o "$T/no" --weights 2,-1,3 "${llamas[@]}"
refuse 2 "weights without a sum" "--weights: the sum is 0" aggregate --method flora -o "$T/no" --weights 0,0,0 "${llamas[@]}"
refuse 2 "two ways to the rank" "--r and --energy both" aggregate --method flexlora -o "$T/no" --r 2 --energy 0.9 "${llamas[@]}"
refuse 2 "a share beyond 1" "--energy: 2 is not a share" aggregate --method flexlora -o "$T/no" --energy 2 "${llamas[@]}"
refuse 2 "an unknown number format" "--dtype: 'f8' is not one of" aggregate --method flora -o "$T/no" --dtype f8 "${llamas[@]}"
refuse 3 "an unknown key" "method.nam" aggregate --method flora -o "$T/no" --set method.nam=x "${llamas[@]}"
refuse 4 "no such adapter" "$T/nowhere: cannot be read" aggregate --method flora -o "$T/no" "$T/nowhere"
refuse 2 "the result in place of an adapter" "is one of the adapters that are read" aggregate --method flora -o "$peft/llama-plain" "${llamas[@]}"
refuse 3 "adapters of different models" "has no tensor classifier.bias" aggregate --method flora -o "$T/no" "$peft/vit5" "$peft/gpt2"
check "what is refused leaves nothing" test ! -e "$T/no/adapter_config.json"
check "the adapters are as they were" test ! -e "$peft/llama-plain/adapter_model.safetensors.tmp"

# ---- the same from the command line and from files ----
printf '# adapters\n\n%s\n' "${llamas[@]}" >"$T/list"
printf '3\n1 \n4\n' >"$T/weights"
for ranks in 1 3; do
    check "three adapters, $ranks rank(s)" run_fedlora "$ranks" aggregate --method flora --weights 3,1,4 -o "$T/flora-$ranks" "${llamas[@]}"
done
prints "the table has the ranks of a module" "model.layers.0.self_attn.q_proj"
prints "one line says what plain averaging would have cost" "averaging A and B separately would have cost"
check "the same from files, weights of another sum" "$FEDLORA" aggregate --method flora --weights "@$T/weights" -o "$T/flora-file" "@$T/list"
check "the same bytes on 1 and 3 ranks" diff -r "$T/flora-1" "$T/flora-3"
check "the same bytes from files" diff -r "$T/flora-1" "$T/flora-file"
check "other weights, other bytes" "$FEDLORA" aggregate --method flora -o "$T/flora-even" --no-audit "@$T/list"
check_exit 1 "they are another adapter" cmp -s "$T/flora-1/adapter_model.safetensors" "$T/flora-even/adapter_model.safetensors"
: >"$T/empty"
check_exit 2 "an empty list" "$FEDLORA" aggregate --method flora -o "$T/no" "@$T/empty"
prints "it says so" "names no folder"
check_exit 4 "a list that is not there" "$FEDLORA" aggregate --method flora -o "$T/no" "@$T/nothing"

# ---- heads, number formats, spellings ----
check "two classifiers of unequal ranks" "$FEDLORA" aggregate --method flora --dtype bf16 -o "$T/bert" "$peft/bert-a" "$peft/bert-b"
check "the head is in the result" grep -q '"base_model.model.classifier.weight":{"dtype":"BF16"' -a "$T/bert/adapter_model.safetensors"
check "the config names it" grep -q '"classifier"' "$T/bert/adapter_config.json"
check "names of transformers 4 and 5" "$FEDLORA" aggregate --method flora -o "$T/vit" "$peft/vit5" "$peft/vit4"
check_exit 1 "one module each, as the first calls it" grep -q 'encoder.layer' -a "$T/vit/adapter_model.safetensors"
check "an adapter that came out goes in again" "$FEDLORA" aggregate --method flora -o "$T/again" "$T/flora-1" "$peft/llama-plain"
same "completion offers folders" "$("$FEDLORA" --complete aggregate --method flora '')" "@dir"
same "completion offers number formats" "$("$FEDLORA" --complete aggregate --dtype b)" "bf16"
