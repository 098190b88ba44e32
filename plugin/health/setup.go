package health

import (
	"net"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/braidnet/braid/plugin/kubernetes"
)

func init() {
	prometheus.MustRegister(duration, failures)
	plugin.Register(pluginName, setup)
}

func setup(c *caddy.Controller) error {
	s, err := parse(c)
	if err != nil {
		return plugin.Error(pluginName, err)
	}
	s.status = kubernetes.Sources
	c.OnStartup(s.start)
	c.OnRestart(s.stop)
	c.OnRestartFailed(s.start)
	c.OnFinalShutdown(s.finish)
	return nil
}

func parse(c *caddy.Controller) (*server, error) {
	s := &server{addr: ":8080"}
	for c.Next() {
		switch args := c.RemainingArgs(); len(args) {
		case 0:
		case 1:
			if _, _, err := net.SplitHostPort(args[0]); err != nil {
				return nil, c.Errf("address: found %q, want [HOST]:PORT such as :8080", args[0])
			}
			s.addr = args[0]
		default:
			return nil, c.Errf("address: found %q, want one [HOST]:PORT such as :8080", args)
		}
		for c.NextBlock() {
			if c.Val() != "lameduck" {
				return nil, c.Errf("unknown property %q; accepted: lameduck", c.Val())
			}
			args := c.RemainingArgs()
			if len(args) != 1 {
				return nil, c.Errf("lameduck: found %q, want a duration such as 5s", args)
			}
			d, err := time.ParseDuration(args[0])
			if err != nil {
				return nil, c.Errf("lameduck: found %q, want a duration such as 5s", args[0])
			}
			s.lameduck = d
		}
	}
	return s, nil
}
