package agent

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Times between attempts of explainUnreachable.
const (
	firstCheck = time.Second
	lastCheck  = time.Minute
	checkTime  = 5 * time.Second // for one attempt
)

// explainUnreachable says what to do when the API server that a pod is told of cannot be reached. That
// address is a service's, and before this agent has run nothing may translate it: the most frequent
// fault of an installation without kube-proxy, and the errors of requests do not tell it from a
// server that is down. It returns at the first connection, or when ctx ends.
func explainUnreachable(ctx context.Context, log *slog.Logger, host string) {
	u, err := url.Parse(host)
	if err != nil || u.Host == "" {
		return // the requests themselves say more about this
	}
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u}); err != nil || proxy != nil {
		return // requests go another way
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	address := net.JoinHostPort(u.Hostname(), port)
	said := false
	for pause := firstCheck; ; pause = min(2*pause, lastCheck) {
		conn, err := (&net.Dialer{Timeout: checkTime}).DialContext(ctx, "tcp", address)
		switch {
		case err == nil:
			conn.Close()
			if said {
				log.Info("the API server can be reached now", "address", address)
			}
			return
		case ctx.Err() != nil:
			return
		case !said:
			log.Error("the API server cannot be reached, so this agent has nothing to program yet", "address", address, "err", err,
				"fix", "if this is a service address (kubectl get service kubernetes), give one that nodes reach by themselves: "+
					"keys host and port of ConfigMap braid-api-server in kube-system, then kubectl -n kube-system rollout restart daemonset/netagent")
			said = true
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}
