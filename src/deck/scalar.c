/* scalar.c - one word of YAML as a number, a seed, a truth value, a choice; and user's words in
 * messages. */
#include "deck_internal.h"
#include <ctype.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void deck_clean(const char *s, char buffer[DECK_SHOW])
{
    size_t n = strlen(s), room = DECK_SHOW - 4; /* dots and the end */
    bool cut = n > room;

    if (cut) {
        for (n = room; n > 0 && ((unsigned char)s[n] & 0xC0) == 0x80; n--) {
            /* not in the middle of a UTF-8 character */
        }
    }
    snprintf(buffer, DECK_SHOW, "%.*s%s", (int)n, s, cut ? "..." : "");
    for (char *c = buffer; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7F) {
            *c = '?';
        }
    }
}

const char *deck_word(const char *words, int i, size_t *n)
{
    while (words && i-- > 0) {
        words = strchr(words, '|');
        words = words ? words + 1 : NULL;
    }
    *n = words ? strcspn(words, "|") : 0;
    return words;
}

/* what YAML 1.1 reads as no value */
bool deck_scalar_is_null(const deck_scalar *s)
{
    static const char *const names[] = {"", "~", "null", "Null", "NULL"};

    for (size_t i = 0; i < FL_COUNT(names); i++) {
        if (s->plain && strcmp(s->s, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* decimal digits with optional sign, point and exponent; no hexadecimal, no inf, no nan, nothing
 * behind */
static bool scalar_is_decimal(const char *s)
{
    size_t digits = 0;

    s += *s == '+' || *s == '-';
    for (; isdigit((unsigned char)*s); s++) {
        digits++;
    }
    if (*s == '.') {
        for (s++; isdigit((unsigned char)*s); s++) {
            digits++;
        }
    }
    if (digits > 0 && (*s == 'e' || *s == 'E')) {
        s++;
        s += *s == '+' || *s == '-';
        if (!isdigit((unsigned char)*s)) {
            return false;
        }
        while (isdigit((unsigned char)*s)) {
            s++;
        }
    }
    return digits > 0 && *s == '\0';
}

/* A number in decimal notation; the program never leaves the "C" locale, so strtod reads a point.
 */
static bool scalar_number(const deck_scalar *s, double *x, fl_text *why)
{
    char shown[DECK_SHOW];
    const char *digits = s->s + (s->s[0] == '+' || s->s[0] == '-');

    deck_clean(s->s, shown);
    if (!scalar_is_decimal(s->s)) {
        fl_text_add(why, "'%s' is not a number", shown);
        return false;
    }
    if (!s->plain) {
        fl_text_add(why, "'%s' in quotes is a text; leave the quotes out", shown);
        return false;
    }
    if (digits[0] == '0' && isdigit((unsigned char)digits[1])) {
        fl_text_add(why, "'%s' begins with a zero, which some take for octal; leave it out", shown);
        return false;
    }
    *x = strtod(s->s, NULL) + 0.0; /* -0 becomes 0: one value, one text */
    if (!isfinite(*x)) {
        fl_text_add(why, "'%s' is too large", shown);
        return false;
    }
    return true;
}

static bool scalar_in_range(const char *s, double x, double lo, double hi, fl_text *why)
{
    char shown[DECK_SHOW];

    if (x >= lo && x <= hi) {
        return true;
    }
    deck_clean(s, shown);
    fl_text_add(why, "%s is %s ", shown, x < lo ? "below" : "above");
    deck_real_text(x < lo ? lo : hi, why);
    return false;
}

bool deck_scalar_real(const fl_field *f, const deck_scalar *s, double *x, fl_text *why)
{
    return scalar_number(s, x, why) && scalar_in_range(s->s, *x, f->lo, f->hi, why);
}

bool deck_scalar_int(const fl_field *f, const deck_scalar *s, int *out, fl_text *why)
{
    char shown[DECK_SHOW];
    double x;

    if (!scalar_number(s, &x, why)) {
        return false;
    }
    if (x != floor(x)) {
        deck_clean(s->s, shown);
        fl_text_add(why, "'%s' is not a whole number", shown);
        return false;
    }
    if (!scalar_in_range(
            s->s, x, FL_MAX(f->lo, (double)INT_MIN), FL_MIN(f->hi, (double)INT_MAX), why)) {
        return false;
    }
    *out = (int)x;
    return true;
}

/* 64 bits do not fit into a double: digits only */
bool deck_scalar_seed(const deck_scalar *s, uint64_t *out, fl_text *why)
{
    char shown[DECK_SHOW];
    uint64_t x = 0;

    deck_clean(s->s, shown);
    for (const char *c = s->s; *c; c++) {
        unsigned digit = (unsigned)(*c - '0');

        if (!isdigit((unsigned char)*c) || x > (UINT64_MAX - digit) / 10) {
            fl_text_add(
                why, "'%s' is not a whole number from 0 to 18446744073709551615 in digits", shown);
            return false;
        }
        x = 10 * x + digit;
    }
    if (!s->plain || (s->s[0] == '0' && s->s[1] != '\0')) {
        fl_text_add(why, "'%s': write the seed without quotes and without leading zeros", shown);
        return false;
    }
    *out = x;
    return true;
}

bool deck_scalar_bool(const deck_scalar *s, bool *out, fl_text *why)
{
    /* the words of YAML 1.1, each also Capitalised and in CAPITALS */
    static const struct {
        const char *name;
        bool value;
    } names[] = {
        {"true", true},
        {"yes", true},
        {"on", true},
        {"y", true},
        {"false", false},
        {"no", false},
        {"off", false},
        {"n", false},
    };
    char shown[DECK_SHOW];
    size_t n = strlen(s->s), upper = 0;

    for (size_t i = 0; i < n; i++) {
        upper += isupper((unsigned char)s->s[i]) != 0;
    }
    bool cased = upper == 0 || upper == n || (upper == 1 && isupper((unsigned char)s->s[0]));
    for (size_t i = 0; s->plain && cased && i < FL_COUNT(names); i++) {
        if (strcasecmp(s->s, names[i].name) == 0) {
            *out = names[i].value;
            return true;
        }
    }
    deck_clean(s->s, shown);
    fl_text_add(why, "'%s' is neither true nor false", shown);
    return false;
}

int deck_scalar_word(const fl_field *f, const deck_scalar *s, fl_text *why)
{
    char shown[DECK_SHOW];
    const char *w;
    size_t n;

    for (int i = 0; (w = deck_word(f->words, i, &n)) != NULL; i++) {
        if (strlen(s->s) == n && memcmp(s->s, w, n) == 0) {
            return i;
        }
    }
    deck_clean(s->s, shown);
    fl_text_add(why, "'%s' is not ", shown);
    deck_range_text(f, " or ", why);
    deck_nearest_word(f->words, s->s, why);
    return -1;
}
