package pglock

import (
	"strconv"
	"strings"

	"github.com/lockerkit/locker"
)

// What is sent to wait in Postgres's line. A statement that is cancelled is an error in the server's log, for each of
// which somebody may be called; so the statements are in a block of PL/pgSQL in which the error is caught, and the last
// column tells whether the lock was granted, and the number of its slot. The keys are not in the block, which so is the
// same text each time, but for the mode, for those who collect statistics of statements.
//
// The token could be minted by a prepared statement. That would save a tenth of a millisecond after the grant, in which
// a former holder whose session the server has ended is told so. With it, a rival on the same machine was first more
// often.

// waitFor is how to wait in a mode. All of these are formats: the number of the message, the key, the marks of readers
// and of slots, the key of slot 0, how many slots there are, and what mints a token.
type waitFor struct {
	keys    string   // what the block is told
	declare string   // of the block
	steps   []string // in which $1 and so on are what the block is told
	last    string   // what is granted, also as a step
}

var waitFors = [...]waitFor{
	locker.ModeExclusive: {
		keys: "%[2]d", steps: []string{"pg_advisory_lock($1)"}, last: "'granted'",
	},

	// A reader gets behind those who wait for a slot, and keeps others from trying to get one. When those who have one
	// have left, he needs their mark no more.
	locker.ModeShared: {
		keys: "%[2]d,%[3]d,%[4]d", declare: keysOfBlock,
		steps: []string{"pg_advisory_lock_shared($1)", "pg_advisory_lock_shared($2)", "pg_advisory_xact_lock($3)"},
		last:  "'granted'",
	},

	// Who waits for a slot has the readers' mark alone until he has one: it keeps readers out, and is the line of those
	// who do the same. Then he takes the first that gets free. Nothing in Postgres waits for one of several locks, so
	// he looks for it, as only the first in line does: after pauses that are as long as he has waited so far, and at
	// most 8 ms and 50 µs for each slot, or to look for it would be all that the server does.
	locker.ModeSlots: {
		keys: "%[2]d,%[3]d,%[4]d,%[5]d,%[6]d", declare: keysOfBlock,
		steps: []string{"pg_advisory_lock_shared($1)", "pg_advisory_xact_lock($2)", "pg_advisory_lock_shared($3)"},
		last: `'granted ' || (SELECT number FROM (
		SELECT CASE WHEN look = 0 OR pg_sleep(least(0.001 * 2 ^ least(look, 12), 0.008 + 0.00005 * $5))::text = '' THEN
			(SELECT i FROM (SELECT generate_series(0, $5 - 1) AS i) AS numbers
				WHERE look >= 0 AND pg_try_advisory_lock($4 + i) LIMIT 1)
		END AS number FROM (SELECT generate_series(0, 100000) AS look) AS often OFFSET 0
	) AS looks WHERE number IS NOT NULL LIMIT 1)`,
	},
}

// waits are the statements for each mode, with a block, and for databases without PL/pgSQL or in which the role may not
// use it.
var waits = func() (sql [len(waitFors)]struct{ block, plain string }) {
	for mode, w := range waitFors {
		sql[mode].block, sql[mode].plain = w.block(), w.plain()
	}
	return sql
}()

const keysOfBlock = `DECLARE
	keys bigint[] := string_to_array(current_setting('locker.key'), ',');
`

func (w waitFor) block() string {
	var body strings.Builder
	for _, step := range append(w.steps[:len(w.steps):len(w.steps)], "set_config('locker.key', "+w.last+", true)") {
		body.WriteString("\tPERFORM " + step + ";\n")
	}
	key := func(i int) string { return "keys[" + strconv.Itoa(i) + "]" }
	if w.declare == "" {
		key = func(int) string { return "current_setting('locker.key')::bigint" }
	}
	text := fill(w.declare+"BEGIN\n"+body.String()+"EXCEPTION WHEN query_canceled THEN\nEND", key)
	return "SELECT %[1]d, set_config('locker.key', '" + w.keys + "', true);\nDO '" +
		strings.ReplaceAll(text, "'", "''") + "';\nSELECT word, CASE WHEN word LIKE 'granted%%' THEN %[7]s END " +
		"FROM current_setting('locker.key') AS word"
}

func (w waitFor) plain() string {
	key := func(i int) string { return "%[" + strconv.Itoa(i+1) + "]d" }
	text := "SELECT %[1]d, " + w.steps[0]
	for _, step := range w.steps[1:] {
		text += ";SELECT " + step
	}
	return fill(text+";SELECT "+w.last+", %[7]s", key)
}

// fill puts keys into statements.
func fill(text string, key func(i int) string) string {
	for i := 1; i <= 5; i++ {
		text = strings.ReplaceAll(text, "$"+strconv.Itoa(i), key(i))
	}
	return text
}

// granted returns the lock that an answer to one of these says that there is, which is done then.
func (a *answer) granted() (o outcome) {
	if a.err != nil || len(a.rows) < 2 {
		return o
	}
	last := a.rows[len(a.rows)-1]
	if len(last) != 2 {
		return o
	}
	word, slot, has := strings.Cut(last[0], " ")
	if has {
		number, err := strconv.Atoi(slot)
		if err != nil {
			return o
		}
		o.number = number
	}
	o.done, o.token, o.sent = word == "granted", parseToken(last[1]), a.sent
	return o
}
