// Package fastpath is a CoreDNS plugin that answers plain questions for names of the cluster before a
// message is made of them. It opens sockets of its own on the addresses of the servers whose block has
// its word, reads and writes packets by the batch, and makes answers in place from the index that
// plugin kubernetes answers from. Everything else it hands to the server as it came. README.md says
// what that is, and when the plugin stays off.
package fastpath

import (
	"net"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

const pluginName = "fastpath"

var log = clog.NewWithPlugin(pluginName)

var (
	answered = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: plugin.Namespace, Subsystem: pluginName, Name: "answers_total",
		Help: "Counter of queries that were answered without the other plugins.",
	})
	shed = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: plugin.Namespace, Subsystem: pluginName, Name: "shed_total",
		Help: "Counter of queries that were dropped because too many were waiting for the other plugins.",
	})
)

func init() {
	prometheus.MustRegister(answered, shed)
	plugin.Register(pluginName, setup)
}

// instance is one configuration of the process: a reload makes the next before it ends the last.
type instance struct {
	mu     sync.Mutex
	blocks map[*dnsserver.Config]*settings
	said   map[string]bool // what was logged
}

// settings are those of one server block.
type settings struct{ sockets int }

type instanceKey struct{}

// starting are configurations that have not succeeded yet.
var starting = struct {
	sync.Mutex
	list []*instance
}{}

func setup(c *caddy.Controller) error {
	cfg, err := parse(c)
	if err != nil {
		return plugin.Error(pluginName, err)
	}
	in, _ := c.Get(instanceKey{}).(*instance)
	if in == nil {
		in = &instance{blocks: map[*dnsserver.Config]*settings{}, said: map[string]bool{}}
		c.Set(instanceKey{}, in)
		in.follow(c)
	}
	server := dnsserver.GetConfig(c)
	in.blocks[server] = cfg
	c.OnStartup(func() error {
		hold(in, addresses(server))
		return nil
	})
	if c.ServerBlockKeyIndex > 0 {
		return nil // CoreDNS gives the others what the first has
	}
	before := server.UDPDecorateWriterFunc
	server.UDPDecorateWriterFunc = func(s *dnsserver.Server) dns.DecorateWriter {
		in.start(s)
		if before != nil {
			return before(s)
		}
		return nil
	}
	return nil
}

// follow lets an instance hold sockets for as long as it is one. Before a process ends it answers until
// every plugin that waits for clients to leave has done so.
func (in *instance) follow(c *caddy.Controller) {
	var reloading atomic.Bool
	c.OnStartup(func() error {
		starting.Lock()
		defer starting.Unlock()
		starting.list = append(starting.list, in)
		return nil
	})
	c.OnRestart(func() error {
		starting.Lock()
		defer starting.Unlock()
		starting.list = nil
		reloading.Store(true)
		return nil
	})
	c.OnRestartFailed(func() error { // nobody tells the new one to shut down
		starting.Lock()
		defer starting.Unlock()
		for _, failed := range starting.list {
			leave(failed, "")
		}
		starting.list = nil
		reloading.Store(false)
		return nil
	})
	end := func() error {
		leave(in, "")
		return nil
	}
	c.OnShutdown(func() error {
		if reloading.Load() {
			return end()
		}
		return nil
	})
	c.OnFinalShutdown(end)
}

func parse(c *caddy.Controller) (*settings, error) {
	out := &settings{sockets: defaultSockets()}
	for i := 0; c.Next(); i++ {
		if i > 0 {
			return nil, plugin.ErrOnce
		}
		if len(c.RemainingArgs()) > 0 {
			return nil, c.ArgErr()
		}
		for c.NextBlock() {
			word := c.Val()
			args := c.RemainingArgs()
			if word != "sockets" {
				return nil, c.Errf("unknown property %q; accepted: sockets", word)
			}
			n := 0
			if len(args) == 1 {
				n, _ = strconv.Atoi(args[0])
			}
			if n < 1 || n > maxSockets {
				return nil, c.Errf("sockets: found %q, want one number from 1 to %d", args, maxSockets)
			}
			out.sockets = n
		}
	}
	return out, nil
}

// addresses are the addresses of a server block, as servers call them.
func addresses(c *dnsserver.Config) (out []string) {
	for _, h := range c.ListenHosts {
		out = append(out, c.Transport+"://"+net.JoinHostPort(h, c.Port))
	}
	return out
}

// start begins to answer for a server that is about to serve. It may be called once for each of
// several server blocks, and of several servers on one address.
func (in *instance) start(s *dnsserver.Server) {
	in.mu.Lock()
	defer in.mu.Unlock()
	all, err := servedBy(s)
	if err != nil {
		in.off(s.Addr, err)
		return
	}
	p := &plan{server: s}
	sockets, servers := 1, 1
	for block, cfg := range in.blocks {
		if !all.has(block) {
			continue
		}
		zones, err := zonesOf(s, block, all)
		if err != nil {
			in.off(s.Addr+" "+block.Zone, err)
			continue
		}
		p.zones = append(p.zones, zones...)
		sockets, servers = max(sockets, cfg.sockets), max(servers, block.NumSockets)
	}
	if len(p.zones) == 0 {
		leave(in, s.Addr)
		return
	}
	slices.SortFunc(p.zones, func(a, b *zone) int { return len(b.suffix) - len(a.suffix) })
	if err := serve(in, s.Addr, p, sockets, servers); err != nil {
		in.off(s.Addr, err)
	}
}

// off says, once, why a server has no fast path.
func (in *instance) off(where string, err error) {
	if text := where + " " + err.Error(); !in.said[text] {
		in.said[text] = true
		log.Infof("off for %s: %v", where, err)
	}
}

func (s served) has(block *dnsserver.Config) bool {
	at := reflect.ValueOf(block).Pointer()
	for _, list := range s {
		if slices.Contains(list, at) {
			return true
		}
	}
	return false
}
