package pglock

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/lockerkit/locker"
)

// To inspect is to read pg_locks, where a lock is a key without a name, pg_stat_activity, which knows the sessions, and
// what Lockers have written of their holders, see records.go.

// locksSQL returns what sessions have or wait for of some locks and their marks, and the marks of Lockers. It is a
// format: the keys, all keys that locks are made of but the slots, and the first slots, shifted to the right. What has
// two integers, which are halves of the key, is the mark of somebody who polls. The server notes when a wait began a
// moment after it did.
const locksSQL = `SELECT coalesce(pid::text, virtualtransaction), coalesce(pid, 0), key,
	CASE WHEN objsubid = 1 THEN 0 WHEN classid IN (%[4]d, %[5]d) THEN classid::bigint ELSE 1 END,
	mode = 'ExclusiveLock', granted,
	(extract(epoch FROM coalesce(waitstart, clock_timestamp())) * 1000000)::bigint,
	concat_ws(', ', coalesce('pid ' || pid, 'a prepared transaction'), host(client_addr), nullif(application_name, ''))
FROM (SELECT *, classid::bigint << 32 | objid::bigint AS key FROM pg_locks WHERE locktype = 'advisory'
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) OFFSET 0) AS locks
	LEFT JOIN pg_stat_activity USING (pid)
WHERE CASE objsubid WHEN 2 THEN classid IN (%[4]d, %[5]d) OR key = ANY ('%[1]s')
	ELSE key = ANY ('%[2]s') OR key >> %[6]d = ANY ('%[3]s') END`

// Inspect implements locker.Inspector.
func (b *backend) Inspect(ctx context.Context, name string) (locker.LockInfo, error) {
	records, err := b.readRecords(ctx, b.sql.recordsOf(name))
	if err != nil && !isUnread(err) {
		return locker.LockInfo{}, err
	}
	locks, err := b.see(ctx, []string{name}, records)
	if err != nil {
		return locker.LockInfo{}, err
	}
	return locks[0].describe(), nil
}

// pageSize is how many locks List asks for at a time.
const pageSize = 500

// List implements locker.Inspector: it yields those locks of which there are records.
func (b *backend) List(ctx context.Context, prefix string) iter.Seq2[locker.LockInfo, error] {
	return func(yield func(locker.LockInfo, error) bool) {
		for after := ""; ; {
			records, err := b.readRecords(ctx, b.sql.recordsUnder(prefix, after))
			var names []string
			for _, r := range records {
				if len(names) == 0 || names[len(names)-1] != r.name {
					names = append(names, r.name)
				}
			}
			var locks []*seen
			if err == nil && len(names) > 0 {
				locks, err = b.see(ctx, names, records)
			}
			if err != nil {
				yield(locker.LockInfo{}, explainUnlessEnded(ctx, err))
				return
			}
			for _, lock := range locks {
				info := lock.describe()
				if len(info.Holders) > 0 && !yield(info, nil) {
					return
				}
			}
			if len(names) < pageSize {
				return
			}
			after = names[len(names)-1]
		}
	}
}

// see looks at some locks, of whose holders there are these records.
func (b *backend) see(ctx context.Context, names []string, records []record) ([]*seen, error) {
	rows, err := b.consultOnce(ctx, lookAt(names))
	if err != nil {
		return nil, err
	}
	return sortOut(names, rows, records)
}

// lookAt returns the statement that looks at some locks.
func lookAt(names []string) string {
	var keys, parts, slots []int64
	for _, name := range names {
		key := Key(name)
		m := marksOf(key)
		keys = append(keys, key)
		parts = append(parts, key, m.readers, m.slots, m.gate)
		slots = append(slots, m.first>>slotBits)
	}
	return fmt.Sprintf(locksSQL, arrayOf(keys), arrayOf(parts), arrayOf(slots), lockerMark, hearsMark, slotBits)
}

// isUnread reports whether the records cannot be read, though the locks can.
func isUnread(err error) bool {
	const lockNotAvailable = "55P03"
	return errors.Is(err, ErrPermission) || errors.Is(err, ErrNoTables) ||
		isCode(err, lockNotAvailable)
}
