package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// Fetch asks the agent behind a unix socket for its report. The error says what to do when none answers.
func Fetch(ctx context.Context, socket string) (*Report, error) { return fetch(ctx, socket, "/status") }

// FetchAll is Fetch with what is in force of each Service.
func FetchAll(ctx context.Context, socket string) (*Report, error) {
	return fetch(ctx, socket, "/status?services=all")
}

func fetch(ctx context.Context, socket, path string) (*Report, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://netagent"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("no agent answers on %s: is `netagent run` running on this node, with this --run-dir?", socket)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%s may be read by root only: run this as root", socket)
	case err != nil:
		return nil, err
	}
	defer resp.Body.Close()
	var r Report
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
		return nil, fmt.Errorf("the agent on %s gave no status: %w", socket, err)
	}
	return &r, nil
}
