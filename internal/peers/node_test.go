package peers

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/testserver"
)

// installPatience bounds the time that npm may take.
const installPatience = 3 * time.Minute

// node is a process of Node.js that takes locks with node-redlock: see node/peer.mjs.
type node struct {
	stdin io.WriteCloser
	ended chan struct{} // closed when the process has

	mu      sync.Mutex
	last    int
	pending map[int]chan answer
}

type command struct {
	ID      int      `json:"id"`
	Op      string   `json:"op"`
	Servers []string `json:"servers,omitempty"`
	Key     string   `json:"key,omitempty"`
	TTL     int64    `json:"ttl,omitempty"`
	Wait    bool     `json:"wait,omitempty"`
	Redlock int      `json:"redlock,omitempty"`
	Lock    int      `json:"lock,omitempty"`
}

type answer struct {
	ID    int      `json:"id"`
	Error string   `json:"error"`
	Votes []string `json:"votes"` // of the servers that were against
}

// theNode is the one of this process. It ends when the tests have.
var theNode = testserver.Lazy[*node]{Start: startNode}

func endNode() { _ = theNode.Close() }

// needNode returns the process. Without Node.js and what npm installs, the test is skipped, unless
// LOCKER_REQUIRE_SERVERS has "node" in it: "all" means servers.
func needNode(t *testing.T) *node {
	t.Helper()
	n, err := theNode.Get()
	if err != nil {
		for name := range strings.SplitSeq(os.Getenv(testserver.EnvRequire), ",") {
			if strings.EqualFold(strings.TrimSpace(name), "node") {
				t.Fatalf("%v ($%s demands Node.js)", err, testserver.EnvRequire)
			}
		}
		t.Skipf("NOT TESTED, as there is no node-redlock: %v", err)
	}
	return n
}

func startNode() (*node, error) {
	program, err := exec.LookPath("node")
	if err != nil {
		return nil, err
	}
	modules, err := install()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, filepath.Join("node", "peer.mjs"), modules)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	n := &node{stdin: stdin, ended: make(chan struct{}), pending: make(map[int]chan answer)}
	go func() {
		defer close(n.ended)
		n.read(stdout)
		_ = cmd.Wait()
	}()
	return n, nil
}

// Close ends the process.
func (n *node) Close() error {
	err := n.stdin.Close()
	<-n.ended
	return err
}

func (n *node) read(stdout io.Reader) {
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		var a answer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			a.Error = fmt.Sprintf("%v: %s", err, lines.Bytes())
		}
		n.mu.Lock()
		c := n.pending[a.ID]
		delete(n.pending, a.ID)
		n.mu.Unlock()
		if c != nil {
			c <- a
		}
	}
}

// do has a command executed and returns its id.
func (n *node) do(ctx context.Context, c command) (id int, err error) {
	answered := make(chan answer, 1)
	n.mu.Lock()
	n.last++
	c.ID = n.last
	n.pending[c.ID] = answered
	line, err := json.Marshal(c)
	if err == nil {
		_, err = n.stdin.Write(append(line, '\n'))
	}
	n.mu.Unlock()
	if err != nil {
		return 0, err
	}
	select {
	case a := <-answered:
		return c.ID, a.err(c.Op)
	case <-n.ended:
		return 0, errors.New("node has ended")
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func (a answer) err(op string) error {
	locked := slices.Contains(a.Votes, "ResourceLockedError")
	switch {
	case a.Error == "":
		return nil
	case op == "acquire" && locked:
		return errHeld
	case locked || strings.Contains(a.Error, "already-expired"):
		return errNotHeld
	default:
		return fmt.Errorf("node-redlock: %s: %s %v", op, a.Error, a.Votes)
	}
}

// install returns a directory in the user's cache that has the node_modules of package-lock.json.
func install() (dir string, err error) {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	files := []string{"package.json", "package-lock.json"}
	hash := sha256.New()
	for _, name := range files {
		text, err := os.ReadFile(filepath.Join("node", name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(hash, "%s %d\n%s", name, len(text), text)
	}
	cache = filepath.Join(cache, "locker-tests")
	dir = filepath.Join(cache, fmt.Sprintf("node-%x", hash.Sum(nil)[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := testserver.Lock(dir + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(cache, "npm-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	for _, name := range files {
		text, err := os.ReadFile(filepath.Join("node", name))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(tmp, name), text, 0o644); err != nil {
			return "", err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), installPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm ci: %w: %s", err, bytes.TrimSpace(out))
	}
	return dir, os.Rename(tmp, dir) // it is there when it is complete
}

type nodePeer struct {
	node    *node
	redlock int // the id of the connect
	several bool
}

func openNodeRedlock(t *testing.T, s *site) peer {
	n := needNode(t)
	id := must(n.do(t.Context(), command{Op: "connect", Servers: s.servers}))(t)
	t.Cleanup(func() {
		if _, err := n.do(context.Background(), command{Op: "disconnect", Redlock: id}); err != nil {
			t.Error(err)
		}
	})
	return nodePeer{n, id, len(s.servers) > 1}
}

func (p nodePeer) tryLock(ctx context.Context, key string, ttl time.Duration) (hold, error) {
	return p.acquire(ctx, command{Key: key, TTL: ttl.Milliseconds()})
}

// lock waits as node-redlock does if there is one server. On several, its retries leave behind what they got of a
// minority, and find themselves there the next time, so that it may block itself and everybody until its TTL is over:
// only an acquire that fails for good cleans up. There, one is made after the other.
func (p nodePeer) lock(ctx context.Context, key string, ttl time.Duration) (hold, error) {
	if p.several {
		return poll(ctx, func() (hold, error) { return p.tryLock(ctx, key, ttl) })
	}
	return p.acquire(ctx, command{Key: key, TTL: ttl.Milliseconds(), Wait: true})
}

func (p nodePeer) acquire(ctx context.Context, c command) (hold, error) {
	c.Op, c.Redlock = "acquire", p.redlock
	id, err := p.node.do(ctx, c)
	return nodeHold{p.node, id}, err
}

type nodeHold struct {
	node *node
	id   int
}

func (h nodeHold) extend(ctx context.Context, ttl time.Duration) error {
	_, err := h.node.do(ctx, command{Op: "extend", Lock: h.id, TTL: ttl.Milliseconds()})
	return err
}

func (h nodeHold) unlock(ctx context.Context) error {
	_, err := h.node.do(ctx, command{Op: "release", Lock: h.id})
	return err
}
