package fastpath

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// group is the sockets on one address. It outlives a reload: the next configuration takes the sockets
// over with what they hold, and only the plan is exchanged.
type group struct {
	addr    string
	plan    atomic.Pointer[plan]
	sockets []*socket
	pace    pace           // of queries on the slow path
	busy    sync.WaitGroup // those queries
	readers sync.WaitGroup
	base    int // sockets of the servers themselves, see steer
	users   []*instance
}

// groups are the groups of the process by address.
var groups = struct {
	sync.Mutex
	by map[string]*group
}{by: map[string]*group{}}

// hold keeps the groups of some addresses, if there are any, for a configuration that is starting.
func hold(in *instance, addrs []string) {
	groups.Lock()
	defer groups.Unlock()
	for _, a := range addrs {
		if g := groups.by[a]; g != nil && !slices.Contains(g.users, in) {
			g.users = append(g.users, in)
		}
	}
}

// serve opens n sockets on an address, or takes those there are, and answers by a plan. servers is how
// many servers of the configuration listen on the address themselves.
func serve(in *instance, addr string, p *plan, n, servers int) error {
	groups.Lock()
	defer groups.Unlock()
	g := groups.by[addr]
	if g == nil {
		g = &group{addr: addr, base: servers}
		for range n {
			s, err := listen(strings.TrimPrefix(addr, "dns://"))
			if err != nil {
				return errors.Join(err, g.closeSockets())
			}
			g.sockets = append(g.sockets, s)
		}
		g.plan.Store(p)
		if err := g.sockets[0].steer(g.base, n); err != nil {
			return errors.Join(fmt.Errorf("steering packets to own sockets: %w", err), g.closeSockets())
		}
		for _, s := range g.sockets {
			r := newReader(g, s)
			g.readers.Go(r.run)
		}
		groups.by[addr] = g
	}
	// The servers' sockets are the first ones, and of those only so many that were always there.
	if servers < g.base {
		g.base = servers
		if err := g.sockets[0].steer(g.base, len(g.sockets)); err != nil {
			return err
		}
	}
	g.plan.Store(p)
	if !slices.Contains(g.users, in) {
		g.users = append(g.users, in)
	}
	return nil
}

// leave ends a configuration's hold on an address, or with addr empty on all; the last user stops the
// group.
func leave(in *instance, addr string) {
	for _, g := range left(in, addr) {
		g.stop()
	}
}

func left(in *instance, addr string) (unused []*group) {
	groups.Lock()
	defer groups.Unlock()
	for a, g := range groups.by {
		if addr != "" && a != addr {
			continue
		}
		if g.users = slices.DeleteFunc(g.users, func(u *instance) bool { return u == in }); len(g.users) == 0 {
			delete(groups.by, a)
			unused = append(unused, g)
		}
	}
	return unused
}

// grace is how long queries on the slow path may take to end, as long as CoreDNS gives its own.
const grace = 5 * time.Second

// stop gives new packets back to the servers' own sockets, answers those that came before, and closes
// the sockets.
func (g *group) stop() {
	if err := g.sockets[0].steer(0, g.base); err != nil {
		log.Warningf("steering packets for %s back to the server: %v", g.addr, err)
	}
	for _, s := range g.sockets {
		s.wake()
	}
	g.readers.Wait()
	ended := make(chan struct{})
	go func() {
		g.busy.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(grace):
	}
	if err := g.closeSockets(); err != nil {
		log.Warningf("closing sockets on %s: %v", g.addr, err)
	}
}

func (g *group) closeSockets() (err error) {
	for _, s := range g.sockets {
		err = errors.Join(err, s.close())
	}
	return err
}

// defaultSockets is how many sockets a group has: one for each processor, since one reader can keep
// one busy.
func defaultSockets() int { return min(runtime.GOMAXPROCS(0), maxSockets) }

const maxSockets = 64
