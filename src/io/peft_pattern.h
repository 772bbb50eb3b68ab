/* peft_pattern.h - inside src/io: a regular expression as a tree, between its parser and its matcher. */
#ifndef FL_IO_PEFT_PATTERN_H
#define FL_IO_PEFT_PATTERN_H
#include "peft.h"

typedef enum node_kind { NODE_SET, NODE_BEGIN, NODE_END, NODE_ALL, NODE_ANY, NODE_TIMES } node_kind;
typedef struct pattern_node {
    node_kind kind;
    int child, next; /* -1 = none; ALL: children one after another, ANY: one of them */
    int least, most; /* TIMES; most -1 = without end */
    uint64_t set[2]; /* SET: ASCII characters */
} pattern_node;
struct peft_pattern {
    int n, root;
    bool plain;         /* only characters: children of the root, [^] c c c .. [$] */
    bool anchored;      /* plain: begins with ^ */
    int length;         /* plain: of what it matches */
    pattern_node *node; /* owned [n] */
};
#endif
