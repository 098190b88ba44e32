package kubernetes

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/coredns/plugin"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// option is a word of the stanza. usage is what the words behind it should have been.
type option struct {
	usage    string
	min, max int // number of arguments; max < 0 = any
	set      func(c *config, args []string) error
}

var options = map[string]option{
	"manifests": {"one path, or nothing behind an empty variable to use the API server", 1, 1, func(c *config, args []string) error {
		c.source.Manifests = args[0]
		return nil
	}},
	"kubeconfig": {"a file and optionally a context", 1, 2, func(c *config, args []string) error {
		c.source.Kubeconfig, c.source.Context = args[0], strings.Join(args[1:], "")
		return nil
	}},
	"endpoint": {"the URL of the API server", 1, -1, func(c *config, args []string) error {
		if len(args) > 1 {
			c.warn("endpoint takes one URL; only %q is used", args[0])
		}
		c.source.Endpoint = args[0]
		return nil
	}},
	"tls": {"three files: certificate, key, CA certificate", 3, 3, func(c *config, args []string) error {
		c.source.CertFile, c.source.KeyFile, c.source.CAFile = args[0], args[1], args[2]
		return nil
	}},
	"namespaces": {"one or more namespaces", 1, -1, func(c *config, args []string) error {
		for _, ns := range args {
			c.namespaces[ns] = struct{}{}
		}
		return nil
	}},
	"pods": {"disabled, insecure or verified", 1, 1, func(c *config, args []string) error {
		switch m := podMode(args[0]); m {
		case podsDisabled, podsInsecure, podsVerified:
			c.pods = m
			return nil
		}
		return found(args[0])
	}},
	"endpoint_pod_names": {"nothing", 0, 0, func(c *config, _ []string) error {
		c.view.PodNames = true
		return nil
	}},
	"ttl": {fmt.Sprintf("a number of seconds from 0 to %d", maxTTL), 1, -1, func(c *config, args []string) error {
		n, err := strconv.Atoi(args[0])
		if err != nil || n < 0 || n > maxTTL {
			return found(args[0])
		}
		c.ttl = uint32(n)
		c.surplus("ttl", args[1:])
		return nil
	}},
	"apiserver_qps": {"a number of requests per second, 0 or more", 1, 1, func(c *config, args []string) error {
		qps, err := strconv.ParseFloat(args[0], 32)
		if err != nil || !(qps >= 0) { // NaN is neither
			return found(args[0])
		}
		c.source.QPS = float32(qps)
		return nil
	}},
	"apiserver_burst": {"a number of requests, 0 or more", 1, 1, func(c *config, args []string) (err error) {
		c.source.Burst, err = count(args[0])
		return err
	}},
	"apiserver_max_inflight": {"a number of requests, 0 or more", 1, 1, func(c *config, args []string) (err error) {
		c.source.MaxInflight, err = count(args[0])
		return err
	}},
	"labels": {"a label selector such as app=web", 1, -1, func(c *config, args []string) (err error) {
		c.source.Labels, err = selector(args)
		return err
	}},
	"namespace_labels": {"a label selector such as team=red", 1, -1, func(c *config, args []string) (err error) {
		c.source.NamespaceLabels, err = selector(args)
		return err
	}},
	"endpoints": {"all or headless", 1, 1, func(c *config, args []string) error {
		if args[0] != "all" && args[0] != "headless" {
			return found(args[0])
		}
		c.source.HeadlessOnly = args[0] == "headless"
		return nil
	}},
	"zonal": {"nothing", 0, 0, func(c *config, _ []string) error {
		c.zonal = true
		return nil
	}},
	"multicluster": {"zones of this stanza", 0, -1, func(c *config, args []string) error {
		if len(args) == 0 {
			c.warn("multicluster does nothing without a zone")
		}
		for _, z := range args {
			if plugin.Host(z).NormalizeExact() == nil {
				return found(z)
			}
		}
		c.sets = plugin.OriginsFromArgsOrServerBlock(args, nil)
		return nil
	}},
	"nearest": {"nothing", 0, 0, func(c *config, _ []string) error {
		c.nearest = true
		return nil
	}},
	"explain": {"addresses or address ranges of clients, or nothing for all", 0, -1, func(c *config, args []string) error {
		if len(args) == 0 {
			args = []string{"0.0.0.0/0", "::/0"}
		}
		for _, a := range args {
			p, err := netip.ParsePrefix(a)
			if addr, aerr := netip.ParseAddr(a); aerr == nil {
				p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
			}
			if err != nil {
				return found(a)
			}
			c.explain = append(c.explain, p.Masked())
		}
		return nil
	}},
	"self_check": {"a duration such as 10m, or off", 1, 1, func(c *config, args []string) error {
		if args[0] == "off" {
			c.source.CheckEvery = 0
			return nil
		}
		d, err := time.ParseDuration(args[0])
		if err != nil || d <= 0 {
			return found(args[0])
		}
		c.source.CheckEvery = d
		return nil
	}},
	"noendpoints": {"nothing", 0, 0, func(c *config, _ []string) error {
		c.view.NoEndpoints = true
		return nil
	}},
	"fallthrough": {"zones", 0, -1, func(c *config, args []string) error {
		for _, z := range args {
			if plugin.Host(z).NormalizeExact() == nil {
				return found(z)
			}
		}
		c.fall.SetZonesFromArgs(args)
		return nil
	}},
	"ignore": {"empty_service", 0, -1, func(c *config, args []string) error {
		if len(args) == 0 {
			c.warn("ignore does nothing without the word empty_service")
			return nil
		}
		if args[0] != "empty_service" {
			return found(args[0])
		}
		c.view.IgnoreEmpty = true
		c.surplus("ignore empty_service", args[1:])
		return nil
	}},
	"startup_timeout": {"a duration such as 5s", 1, -1, func(c *config, args []string) error {
		d, err := time.ParseDuration(args[0])
		if err != nil || d < 0 {
			return found(args[0])
		}
		c.startupTimeout = d
		c.surplus("startup_timeout", args[1:])
		return nil
	}},
	// Words that Corefiles of old still carry. CoreDNS took them out; we let such files start.
	"upstream": {"", 0, -1, func(c *config, _ []string) error {
		c.warn("upstream has no effect: external names are resolved through this server itself; remove the line")
		return nil
	}},
	"resyncperiod": {"", 0, -1, func(c *config, _ []string) error {
		c.warn("resyncperiod has no effect: changes are watched; remove the line")
		return nil
	}},
	"transfer": {"", 0, -1, func(c *config, _ []string) error {
		c.warn("transfer has no effect inside kubernetes: use the transfer plugin in the server block; remove the line")
		return nil
	}},
}

// surplus warns of words that CoreDNS reads past.
func (c *config) surplus(option string, words []string) {
	if len(words) > 0 {
		c.warn("%s: %q has no effect; remove it", option, strings.Join(words, " "))
	}
}

func count(word string) (int, error) {
	n, err := strconv.Atoi(word)
	if err != nil || n < 0 {
		return 0, found(word)
	}
	return n, nil
}

// selector returns a label selector in canonical form.
func selector(words []string) (string, error) {
	text := strings.Join(words, " ")
	s, err := metav1.ParseToLabelSelector(text)
	if err != nil {
		return "", fmt.Errorf("found %q (%v)", text, err)
	}
	parsed, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return "", fmt.Errorf("found %q (%v)", text, err)
	}
	return parsed.String(), nil
}
