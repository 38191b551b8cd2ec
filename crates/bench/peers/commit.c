/*
 * The peers of `reserve_release` in C: prepared statements on SQLite, without anything above it.
 *
 * commit DATABASE WORKLOAD CLIENTS
 *
 * With one client it commits each command by itself. With more, one thread writes for all of them:
 * the commands that wait share a transaction, and their clients go on after its commit.
 *
 * Each line on standard input is a slice's length in milliseconds, answered by one line: pairs of
 * commands, seconds.
 *
 * WORKLOAD has a line `commit` per command, then its statements: SQL and parameters between tabs.
 * A parameter is n (NULL), iNUMBER, q (the next sequence number), or sTEXT with the marks @NEW@
 * (this pair's id), @OLD@ (that of a pair long ago), @DEV@ and @GRP@ (the client's own).
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sqlite3.h"

enum { MAX_COMMANDS = 4, MAX_STATEMENTS = 64, MAX_PARAMETERS = 16, MAX_CLIENTS = 256, AGO = 512 };

struct statement {
    sqlite3_stmt *prepared;
    int parameters;
    char *parameter[MAX_PARAMETERS];
};

struct command {
    int statements;
    struct statement *statement[MAX_STATEMENTS];
};

struct client {
    pthread_t thread;
    pthread_cond_t answered;
    int number, command, waiting;
    unsigned long pair, done;
};

static sqlite3 *db;
static sqlite3_stmt *begin, *commit;
static struct command commands[MAX_COMMANDS];
static int command_count, client_count, stopping;
static unsigned long next_seq = 1, next_pair = AGO + 1;
static struct client clients[MAX_CLIENTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t asked = PTHREAD_COND_INITIALIZER;

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, db ? sqlite3_errmsg(db) : "failed");
    exit(1);
}

static sqlite3_stmt *prepare(const char *sql)
{
    sqlite3_stmt *prepared;
    if (sqlite3_prepare_v3(db, sql, -1, SQLITE_PREPARE_PERSISTENT, &prepared, NULL) != SQLITE_OK)
        fail(sql);
    return prepared;
}

static void run(sqlite3_stmt *prepared)
{
    if (sqlite3_step(prepared) != SQLITE_DONE)
        fail(sqlite3_sql(prepared));
    sqlite3_reset(prepared);
}

static void load(const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file)
        fail(path);
    char *line = NULL;
    size_t room = 0;
    struct command *command = NULL;
    while (getline(&line, &room, file) > 0) {
        line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "commit")) {
            if (command_count == MAX_COMMANDS)
                fail("too many commands");
            command = &commands[command_count++];
            continue;
        }
        struct statement *statement = calloc(1, sizeof *statement);
        char *rest = strdup(line);
        statement->prepared = prepare(strsep(&rest, "\t"));
        for (char *word; (word = strsep(&rest, "\t"));) {
            if (statement->parameters == MAX_PARAMETERS)
                fail("too many parameters");
            statement->parameter[statement->parameters++] = word;
        }
        if (!command || command->statements == MAX_STATEMENTS)
            fail("too many statements");
        command->statement[command->statements++] = statement;
    }
    free(line);
    fclose(file);
}

/* The text with its marks replaced. */
static char *text(const char *from, const struct client *client)
{
    char *to = malloc(strlen(from) * 4 + 64), *at = to;
    while (*from) {
        if (*from == '@' && !strncmp(from, "@NEW@", 5))
            at += sprintf(at, "ba5e%08lx", client->pair), from += 5;
        else if (*from == '@' && !strncmp(from, "@OLD@", 5))
            at += sprintf(at, "ba5e%08lx", client->pair - AGO), from += 5;
        else if (*from == '@' && !strncmp(from, "@DEV@", 5))
            at += sprintf(at, "0000:f0:%02x.0", client->number), from += 5;
        else if (*from == '@' && !strncmp(from, "@GRP@", 5))
            at += sprintf(at, "g-%012x", client->number), from += 5;
        else
            *at++ = *from++;
    }
    *at = 0;
    return to;
}

static void write_command(const struct client *client)
{
    struct command *command = &commands[client->command];
    for (int i = 0; i < command->statements; i++) {
        struct statement *statement = command->statement[i];
        for (int p = 0; p < statement->parameters; p++) {
            const char *parameter = statement->parameter[p];
            switch (*parameter) {
            case 'n': sqlite3_bind_null(statement->prepared, p + 1); break;
            case 'i': sqlite3_bind_int64(statement->prepared, p + 1, atoll(parameter + 1)); break;
            case 'q': sqlite3_bind_int64(statement->prepared, p + 1, next_seq++); break;
            default:
                sqlite3_bind_text(statement->prepared, p + 1, text(parameter + 1, client), -1, free);
            }
        }
        run(statement->prepared);
    }
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void *client_main(void *given)
{
    struct client *client = given;
    pthread_mutex_lock(&lock);
    while (!stopping) {
        client->pair = next_pair++;
        for (client->command = 0; client->command < command_count; client->command++) {
            client->waiting = 1;
            pthread_cond_signal(&asked);
            while (client->waiting)
                pthread_cond_wait(&client->answered, &lock);
        }
        client->done++;
    }
    client->waiting = -1;
    pthread_cond_signal(&asked);
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* Writes what waits, until every client has ended. */
static void serve(void)
{
    struct client *batch[MAX_CLIENTS];
    pthread_mutex_lock(&lock);
    for (;;) {
        int count = 0, ended = 0;
        for (int i = 0; i < client_count; i++) {
            if (clients[i].waiting == 1)
                batch[count++] = &clients[i];
            ended += clients[i].waiting < 0;
        }
        if (ended == client_count)
            break;
        if (!count) {
            pthread_cond_wait(&asked, &lock);
            continue;
        }
        pthread_mutex_unlock(&lock);
        run(begin);
        for (int i = 0; i < count; i++)
            write_command(batch[i]);
        run(commit);
        pthread_mutex_lock(&lock);
        for (int i = 0; i < count; i++) {
            batch[i]->waiting = 0;
            pthread_cond_signal(&batch[i]->answered);
        }
    }
    pthread_mutex_unlock(&lock);
}

static void *stop_after(void *seconds)
{
    struct timespec time = { (long)*(double *)seconds, 0 };
    time.tv_nsec = (long)((*(double *)seconds - time.tv_sec) * 1e9);
    nanosleep(&time, NULL);
    pthread_mutex_lock(&lock);
    stopping = 1;
    pthread_mutex_unlock(&lock);
    return NULL;
}

static unsigned long alone(double seconds)
{
    struct client *client = &clients[0];
    unsigned long done = 0;
    for (double end = now() + seconds; now() < end; done++) {
        client->pair = next_pair++;
        for (client->command = 0; client->command < command_count; client->command++) {
            run(begin);
            write_command(client);
            run(commit);
        }
    }
    return done;
}

static unsigned long together(double seconds)
{
    pthread_t stopper;
    stopping = 0;
    for (int i = 0; i < client_count; i++) {
        clients[i].waiting = 0;
        clients[i].done = 0;
        pthread_create(&clients[i].thread, NULL, client_main, &clients[i]);
    }
    pthread_create(&stopper, NULL, stop_after, &seconds);
    serve();
    pthread_join(stopper, NULL);
    unsigned long done = 0;
    for (int i = 0; i < client_count; i++) {
        pthread_join(clients[i].thread, NULL);
        done += clients[i].done;
    }
    return done;
}

int main(int count, char **words)
{
    if (count != 4 || (client_count = atoi(words[3])) < 1 || client_count > MAX_CLIENTS) {
        fprintf(stderr, "usage: commit DATABASE WORKLOAD CLIENTS\n");
        return 2;
    }
    for (int i = 0; i < client_count; i++) {
        clients[i].number = i;
        pthread_cond_init(&clients[i].answered, NULL);
    }
    if (sqlite3_open(words[1], &db) != SQLITE_OK)
        fail(words[1]);
    if (sqlite3_exec(db, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                         "PRAGMA foreign_keys = ON;", NULL, NULL, NULL) != SQLITE_OK)
        fail("pragma");
    begin = prepare("BEGIN IMMEDIATE");
    commit = prepare("COMMIT");
    load(words[2]);
    sqlite3_stmt *last = prepare("SELECT coalesce(max(seq), 0) + 1 FROM events");
    if (sqlite3_step(last) == SQLITE_ROW)
        next_seq = sqlite3_column_int64(last, 0);
    sqlite3_finalize(last);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        double start = now(), seconds = atoi(line) / 1e3;
        unsigned long done = client_count == 1 ? alone(seconds) : together(seconds);
        printf("%lu %.9f\n", done, now() - start);
        fflush(stdout);
    }
    return 0;
}
