/* peft_match - does the key of a rank_pattern apply to a module? peft_pattern says what a pattern
 * is. */
#include "peft_pattern.h"
#include <string.h>

enum {
    PATTERN_NAME = 511,   /* bytes of a name */
    PATTERN_WORK = 200000 /* nodes entered for one name; a pattern that takes more is refused */
};

typedef struct place_set { /* bit i: before byte i of the name */
    uint64_t bit[(PATTERN_NAME + 1) / 64];
} place_set;

typedef struct pattern_match {
    const peft_pattern *p;
    const char *name;
    int n;    /* bytes of name */
    int work; /* left */
} pattern_match;

static bool place_at(const place_set *s, int i)
{
    return s->bit[i >> 6] >> (i & 63) & 1;
}

static void place_put(place_set *s, int i)
{
    s->bit[i >> 6] |= (uint64_t)1 << (i & 63);
}

static bool in_set(const pattern_node *x, char c)
{
    return (unsigned char)c < 128 && (x->set[c >> 6] >> (c & 63) & 1);
}

static void match_node(pattern_match *m, int node, const place_set *from, place_set *to);

static void match_times(
    pattern_match *m, const pattern_node *x, const place_set *from, place_set *to)
{
    place_set now = *from, out = x->least == 0 ? *from : (place_set){0};
    bool any = true;

    for (int k = 1; any && (x->most < 0 || k <= x->most) && m->work > 0; k++) {
        place_set next;

        match_node(m, x->child, &now, &next);
        any = false;
        for (size_t i = 0; i < FL_COUNT(next.bit); i++) {
            /* once enough, only places not reached before by fewer repetitions lead further */
            now.bit[i] = k >= x->least ? next.bit[i] & ~out.bit[i] : next.bit[i];
            out.bit[i] |= k >= x->least ? next.bit[i] : 0;
            any = any || now.bit[i] != 0;
        }
    }
    *to = out;
}

/* every place of `to` is reached from one of `from` */
static void match_node(pattern_match *m, int node, const place_set *from, place_set *to)
{
    const pattern_node *x = &m->p->node[node];
    place_set now = *from, out = {0};

    m->work--;
    if (m->work <= 0) {
        *to = out;
        return;
    }
    switch (x->kind) {
    case NODE_BEGIN:
        out.bit[0] = from->bit[0] & 1;
        break;
    case NODE_END:
        if (place_at(from, m->n)) {
            place_put(&out, m->n);
        }
        break;
    case NODE_SET:
        for (int i = 0; i < m->n; i++) {
            if (place_at(from, i) && in_set(x, m->name[i])) {
                place_put(&out, i + 1);
            }
        }
        break;
    case NODE_ALL:
        for (int i = x->child; i >= 0; i = m->p->node[i].next) {
            match_node(m, i, &now, &out);
            now = out;
        }
        out = now;
        break;
    case NODE_ANY:
        for (int i = x->child; i >= 0; i = m->p->node[i].next) {
            match_node(m, i, from, &now);
            for (size_t j = 0; j < FL_COUNT(out.bit); j++) {
                out.bit[j] |= now.bit[j];
            }
        }
        break;
    case NODE_TIMES:
        match_times(m, x, from, &out);
        break;
    }
    *to = out;
}

/* the pattern is a row of characters: its place is the end of the name */
static bool match_plain(const peft_pattern *p, const char *name, int n)
{
    int at = n - p->length;

    if (at < 0 || (at > 0 && (p->anchored || name[at - 1] != '.'))) {
        return false;
    }
    for (int i = p->node[p->root].child; i >= 0; i = p->node[i].next) {
        if (p->node[i].kind == NODE_SET && !in_set(&p->node[i], name[at++])) {
            return false;
        }
    }
    return true;
}

bool peft_pattern_matches(const peft_pattern *p, const char *name, bool *ok)
{
    size_t n = strlen(name);
    pattern_match m = {.p = p, .name = name, .n = (int)n};
    place_set from = {0}, to;

    *ok = n <= PATTERN_NAME;
    if (!*ok || p->plain) {
        return *ok && match_plain(p, name, m.n);
    }
    place_put(&from, 0);
    for (int i = 0; i < m.n; i++) {
        *ok = *ok && (unsigned char)name[i] < 128; /* a pattern counts characters, not bytes */
        if (name[i] == '.') {
            place_put(&from, i + 1);
        }
    }
    m.work = *ok ? PATTERN_WORK : 0;
    match_node(&m, p->root, &from, &to);
    *ok = m.work > 0;
    return *ok && place_at(&to, m.n);
}
