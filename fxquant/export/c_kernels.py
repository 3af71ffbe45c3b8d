"""The operators of a convolutional network in C99: integers only, one picture at a time, [C, H, W].

Each text is a function that needs those above it in `common`; a network's file holds the ones it
calls. Nothing is allocated. `code` is the type of its codes, uint8_t or int8_t.
"""

from __future__ import annotations

COMMON = {
    "floor_shift": """\
/* floor(value / 2^by): C99 leaves open what >> makes of a negative value */
static int64_t floor_shift(int64_t value, int by)
{
    return value >= 0 ? value >> by : ~(~value >> by);
}
""",
    "half_up": """\
static int64_t half_up(int64_t value, int by)
{
    return floor_shift(value + (((int64_t)1 << by) >> 1), by);
}
""",
    "clamped": """\
static code clamped(int64_t value, int32_t low, int32_t high)
{
    return (code)(value < low ? low : value > high ? high : value);
}
""",
}

SHIFTS = {
    "half_up": """\
static int64_t shifted(int64_t value, int by)
{
    return half_up(value, by);
}
""",
    "half_even": """\
static int64_t shifted(int64_t value, int by)
{
    int64_t up = half_up(value, by);
    int tie = 2 * (up * ((int64_t)1 << by) - value) == (int64_t)1 << by;
    return up - (tie && up % 2 != 0);
}
""",
    "half_away": """\
static int64_t shifted(int64_t value, int by)
{
    int64_t up = half_up(value, by);
    int tie = 2 * (up * ((int64_t)1 << by) - value) == (int64_t)1 << by;
    return up - (tie && value < 0);
}
""",
    "gemmlowp": """\
static int64_t shifted(int64_t value, int by)
{
    int first = by < 31 ? by : 31;
    int64_t once = half_up(value, first), up = half_up(once, by - first);
    int tie = 2 * (up * ((int64_t)1 << (by - first)) - once) == (int64_t)1 << (by - first);
    return up - (tie && once < 0);
}
""",
    "ruy": """\
static int64_t shifted(int64_t value, int by)
{
    int first = by < 31 ? by : 31;
    return half_up(half_up(value, first), by - first);
}
""",
}

_DIVIDE = """\
/* zero + total / divisor, rounded as a whole */
static int64_t divided(int64_t total, int64_t divisor, int64_t zero)
{
    int64_t twice = 2 * total + divisor, whole = twice / (2 * divisor);
    int64_t up = whole - (twice % (2 * divisor) < 0);
    ROUNDED
}
"""

_AWAY = """int tie = 2 * (up * divisor - total) == divisor;
    return up + zero - (tie && up + zero <= 0);"""
_EVEN = """int tie = 2 * (up * divisor - total) == divisor;
    return up + zero - (tie && (up + zero) % 2 != 0);"""
DIVISIONS = {
    "half_up": _DIVIDE.replace("ROUNDED", "return up + zero;"),
    "half_even": _DIVIDE.replace("ROUNDED", _EVEN),
    "half_away": _DIVIDE.replace("ROUNDED", _AWAY),
    "gemmlowp": _DIVIDE.replace("ROUNDED", _AWAY),
    "ruy": _DIVIDE.replace("ROUNDED", _AWAY),
}

CONVOLVE = """\
typedef struct {
    int channels, height, width, outputs, rows, columns, kernel_h, kernel_w;
    int stride_h, stride_w, top, left, dilation_h, dilation_w, groups;
    int32_t x_zero, y_zero, low, high;
} convolution;

static void convolve(const convolution *s, const code *x, const int8_t *weight,
                     const int32_t *bias, const int32_t *multiplier, const uint8_t *shift, code *y)
{
    int in = s->channels / s->groups, out = s->outputs / s->groups;
    for (int o = 0; o < s->outputs; o++)
        for (int r = 0; r < s->rows; r++)
            for (int c = 0; c < s->columns; c++) {
                const int8_t *w = weight + o * in * s->kernel_h * s->kernel_w;
                int32_t sum = bias[o];
                for (int i = 0; i < in; i++) {
                    const code *plane = x + (o / out * in + i) * s->height * s->width;
                    for (int kr = 0; kr < s->kernel_h; kr++)
                        for (int kc = 0; kc < s->kernel_w; kc++, w++) {
                            int h = r * s->stride_h - s->top + kr * s->dilation_h;
                            int v = c * s->stride_w - s->left + kc * s->dilation_w;
                            if (h >= 0 && h < s->height && v >= 0 && v < s->width)
                                sum += *w * (plane[h * s->width + v] - s->x_zero);
                        }
                }
                *y++ = clamped(shifted((int64_t)sum * multiplier[o], shift[o]) + s->y_zero,
                               s->low, s->high);
            }
}
"""

STEPS = """\
/* where element i of `size` lies in an operand that is broadcast: its steps are 0 there */
static int place(int i, const int *size, const int *step)
{
    int at = 0;
    for (int d = 3; d >= 0; d--) {
        at += i % size[d] * step[d];
        i /= size[d];
    }
    return at;
}
"""

ADD = """\
typedef struct {
    int terms, elements, size[4];
    int shift;
    int32_t y_zero, low, high;
} addition;

static void add(const addition *s, const code *const *x, const int (*step)[4],
                const int32_t *zero, const int32_t *multiplier, code *y)
{
    for (int i = 0; i < s->elements; i++) {
        int64_t sum = 0;
        for (int t = 0; t < s->terms; t++)
            sum += (int64_t)(x[t][place(i, s->size, step[t])] - zero[t]) * multiplier[t];
        y[i] = clamped(shifted(sum, s->shift) + s->y_zero, s->low, s->high);
    }
}
"""

ADD_IN_STEPS = """\
typedef struct {
    int terms, elements, size[4];
    int32_t y_zero, low, high;
} addition;

/* as gemmlowp: half_up by 31, half away from 0 by the rest */
static int64_t twice_rounded(int64_t value, int by)
{
    int first = by < 31 ? by : 31;
    int64_t once = half_up(value, first), up = half_up(once, by - first);
    int tie = 2 * (up * ((int64_t)1 << (by - first)) - once) == (int64_t)1 << (by - first);
    return up - (tie && once < 0);
}

/* each term is rounded to a common unit, then their sum: one multiplier more than terms */
static void add(const addition *s, const code *const *x, const int (*step)[4],
                const int32_t *zero, const int64_t *multiplier, const uint8_t *shift, code *y)
{
    for (int i = 0; i < s->elements; i++) {
        int64_t sum = 0;
        for (int t = 0; t < s->terms; t++) {
            int64_t d = x[t][place(i, s->size, step[t])] - zero[t];
            sum += twice_rounded(d * multiplier[t], shift[t]);
        }
        sum = twice_rounded(sum * multiplier[s->terms], shift[s->terms]);
        y[i] = clamped(sum + s->y_zero, s->low, s->high);
    }
}
"""

MULTIPLY = """\
typedef struct {
    int elements, size[4], step_a[4], step_b[4];
    int32_t a_zero, b_zero, multiplier;
    int shift;
    int32_t y_zero, low, high;
} product;

static void multiply(const product *s, const code *a, const code *b, code *y)
{
    for (int i = 0; i < s->elements; i++) {
        int64_t d = a[place(i, s->size, s->step_a)] - s->a_zero;
        d *= b[place(i, s->size, s->step_b)] - s->b_zero;
        y[i] = clamped(shifted(d * s->multiplier, s->shift) + s->y_zero, s->low, s->high);
    }
}
"""

RESCALE = """\
typedef struct {
    int blocks, from, to, at; /* so many blocks of `from` elements, into blocks of `to`, at `at` */
    int32_t x_zero, multiplier;
    int shift;
    int32_t y_zero, low, high;
} rescaling;

static void rescale(const rescaling *s, const code *x, code *y)
{
    for (int b = 0; b < s->blocks; b++)
        for (int i = 0; i < s->from; i++) {
            int64_t d = x[b * s->from + i] - s->x_zero;
            y[b * s->to + s->at + i] =
                clamped(shifted(d * s->multiplier, s->shift) + s->y_zero, s->low, s->high);
        }
}
"""

SCALE_AND_SHIFT = """\
typedef struct {
    int channels, elements; /* of a channel */
    int32_t x_zero, y_zero, low, high;
} scaling;

static void scale_and_shift(const scaling *s, const code *x, const int32_t *multiplier,
                            const int64_t *offset, const uint8_t *shift, code *y)
{
    for (int c = 0; c < s->channels; c++)
        for (int i = 0; i < s->elements; i++) {
            int64_t sum = (int64_t)(*x++ - s->x_zero) * multiplier[c] + offset[c];
            *y++ = clamped(shifted(sum, shift[c]) + s->y_zero, s->low, s->high);
        }
}
"""

WINDOW = """\
typedef struct {
    int channels, height, width, rows, columns, kernel_h, kernel_w;
    int stride_h, stride_w, top, left, dilation_h, dilation_w;
    int32_t zero;
} window;
"""

MAX_POOL = """\
static void max_pool(const window *s, const code *x, code *y)
{
    for (int i = 0; i < s->channels; i++, x += s->height * s->width)
        for (int r = 0; r < s->rows; r++)
            for (int c = 0; c < s->columns; c++) {
                int32_t most = INT32_MIN;
                for (int kr = 0; kr < s->kernel_h; kr++)
                    for (int kc = 0; kc < s->kernel_w; kc++) {
                        int h = r * s->stride_h - s->top + kr * s->dilation_h;
                        int v = c * s->stride_w - s->left + kc * s->dilation_w;
                        if (h >= 0 && h < s->height && v >= 0 && v < s->width
                            && x[h * s->width + v] > most)
                            most = x[h * s->width + v];
                    }
                *y++ = (code)most;
            }
}
"""

AVERAGE_POOL = """\
static void average_pool(const window *s, const code *x, const uint16_t *count, code *y)
{
    for (int i = 0; i < s->channels; i++, x += s->height * s->width)
        for (int r = 0; r < s->rows; r++)
            for (int c = 0; c < s->columns; c++) {
                int64_t sum = 0;
                for (int kr = 0; kr < s->kernel_h; kr++)
                    for (int kc = 0; kc < s->kernel_w; kc++) {
                        int h = r * s->stride_h - s->top + kr;
                        int v = c * s->stride_w - s->left + kc;
                        if (h >= 0 && h < s->height && v >= 0 && v < s->width)
                            sum += x[h * s->width + v] - s->zero;
                    }
                *y++ = (code)divided(sum, count[r * s->columns + c], s->zero);
            }
}
"""

AVERAGE = """\
typedef struct {
    int channels, height, width, rows, columns;
    int64_t multiplier;
    int shift;
    int32_t x_zero, inside, y_zero, low, high; /* `inside` is added before it rounds */
    int counted; /* whether the sum is divided by the elements */
} average;

static void average_cells(const average *s, const code *x, code *y)
{
    for (int i = 0; i < s->channels; i++, x += s->height * s->width)
        for (int r = 0; r < s->rows; r++)
            for (int c = 0; c < s->columns; c++) {
                int top = r * s->height / s->rows, left = c * s->width / s->columns;
                int bottom = ((r + 1) * s->height + s->rows - 1) / s->rows;
                int right = ((c + 1) * s->width + s->columns - 1) / s->columns;
                int64_t sum = 0, count = s->counted ? (bottom - top) * (right - left) : 1;
                for (int h = top; h < bottom; h++)
                    for (int v = left; v < right; v++)
                        sum += x[h * s->width + v] - s->x_zero;
                *y++ = clamped(divided(sum * s->multiplier, count * ((int64_t)1 << s->shift),
                                       s->inside) + s->y_zero, s->low, s->high);
            }
}
"""

LIMIT = """\
static void limit(int elements, const code *x, int32_t low, int32_t high, code *y)
{
    for (int i = 0; i < elements; i++)
        y[i] = clamped(x[i], low, high);
}
"""

LOOK_UP = """\
static void look_up(int elements, const code *x, const code *table, int32_t lowest, code *y)
{
    for (int i = 0; i < elements; i++)
        y[i] = table[x[i] - lowest];
}
"""

FILL = """\
static void fill(int elements, int32_t value, code *y)
{
    for (int i = 0; i < elements; i++)
        y[i] = (code)value;
}
"""

MOVE = """\
typedef struct {
    int elements, size[6], step[6], first;
} movement;

static void move(const movement *s, const code *x, code *y)
{
    for (int i = 0; i < s->elements; i++) {
        int rest = i, at = s->first;
        for (int d = 5; d >= 0; d--) {
            at += rest % s->size[d] * s->step[d];
            rest /= s->size[d];
        }
        y[i] = x[at];
    }
}
"""

PICK = """\
/* elements by their places; -1 is the code of 0, as padding has it */
static void pick(int elements, const int32_t *at, const code *x, int32_t zero, code *y)
{
    for (int i = 0; i < elements; i++)
        y[i] = at[i] < 0 ? (code)zero : x[at[i]];
}
"""
