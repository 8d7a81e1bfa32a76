package pglock

import (
	"strconv"
	"strings"
)

// elements returns the elements of an array of numbers or booleans as Postgres writes it, such as {1,2,NULL}.
func elements(array string) []string {
	array = strings.TrimSuffix(strings.TrimPrefix(array, "{"), "}")
	if array == "" { // none, or NULL
		return nil
	}
	return strings.Split(array, ",")
}

func parseBools(array string) []bool {
	words := elements(array)
	bools := make([]bool, len(words))
	for i, w := range words {
		bools[i] = w == "t"
	}
	return bools
}

// grant is the outcome of a try for a lock, as the server tells it.
type grant struct {
	taken bool
	token uint64 // 0 if it was taken, but no token could be minted
}

// parseGrants reads the answer of locker_try (number, taken, token) or of the statements for several keys (number, array of
// taken, arrays of buckets and of their tokens). It returns a grant for each of the keys, in order, or nil if the
// answer makes no sense.
func parseGrants(row []string, keys []int64) []grant {
	switch {
	case len(row) == 3 && len(keys) == 1:
		token, _ := strconv.ParseUint(row[2], 10, 64) // "" is NULL
		return []grant{{row[1] == "t", token}}
	case len(row) != 4:
		return nil
	}
	taken, places, values := parseBools(row[1]), elements(row[2]), elements(row[3])
	if len(taken) != len(keys) || len(places) != len(values) {
		return nil
	}
	var tokens [buckets]uint64
	for i := range places {
		bucket, err := strconv.Atoi(places[i])
		token, err2 := strconv.ParseUint(values[i], 10, 64)
		if err != nil || err2 != nil || bucket < 0 || bucket >= buckets {
			return nil
		}
		tokens[bucket] = token
	}
	grants := make([]grant, len(keys))
	for i, key := range keys {
		if taken[i] {
			grants[i] = grant{true, tokens[key&(buckets-1)]}
		}
	}
	return grants
}
